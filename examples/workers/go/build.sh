#!/bin/sh
# Builds the worker with Debian's packages, no module proxy: sh build.sh [OUTPUT]
#   apt-get install golang-go protobuf-compiler protoc-gen-go protoc-gen-go-grpc \
#     golang-google-grpc-dev golang-google-protobuf-dev
set -eu
here=$(cd "$(dirname "$0")" && pwd)
output=${1:-$here/build/worker}
gopath=$(dirname "$output")/gopath

mkdir -p "$gopath/src/resultd-worker"
protoc -I "$here/../../../protos" --go_out="$gopath/src" --go-grpc_out="$gopath/src" \
  "$here"/../../../protos/resultd/v1/*.proto
cp "$here"/*.go "$gopath/src/resultd-worker/"
GO111MODULE=off GOPATH="$gopath:/usr/share/gocode" go build -o "$output" resultd-worker
