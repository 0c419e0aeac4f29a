"""The yardstick of reading many: etcd, a range of as many 300-byte values by its gRPC API.

Only the fields that are used are declared, by their names and numbers in etcd's API.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

VALUE = b"x" * 300
PAGE = 1_000
_PUTS_PER_CALL = 128  # etcd takes no more
_READY_S = 10.0
_BYTES, _INT, _BOOL, _MESSAGE = 12, 3, 8, 11  # of FieldDescriptorProto.Type
_PREFIX, _END = b"result/", b"result0"

_MESSAGES: dict[str, list[tuple[str, int, int, str]]] = {
    # message: (field, number, type, message it is of, "*" before it if repeated)
    "KeyValue": [("key", 1, _BYTES, ""), ("value", 5, _BYTES, "")],
    "RangeRequest": [("key", 1, _BYTES, ""), ("range_end", 2, _BYTES, ""), ("limit", 3, _INT, "")],
    "RangeResponse": [("kvs", 2, _MESSAGE, "*KeyValue"), ("more", 3, _BOOL, "")],
    "PutRequest": [("key", 1, _BYTES, ""), ("value", 2, _BYTES, "")],
    "RequestOp": [("request_put", 2, _MESSAGE, "PutRequest")],
    "TxnRequest": [("success", 2, _MESSAGE, "*RequestOp")],
    "TxnResponse": [("succeeded", 2, _BOOL, "")],
}


def why_no_etcd() -> str | None:
    """What is missing to have an etcd, None if nothing is."""
    return None if shutil.which("etcd") else "etcd is not installed (Debian: etcd-server)"


@contextlib.contextmanager
def etcd(values: int) -> Iterator[str]:
    """A private etcd with so many values; its address."""
    with tempfile.TemporaryDirectory() as directory:
        client, peer = (f"http://127.0.0.1:{port}" for port in _free_ports())
        command = ["etcd", "--data-dir", directory, "--log-level", "error", "--logger", "zap"]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", f"default={peer}", "--max-txn-ops", str(_PUTS_PER_CALL)]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
            try:
                address = client.removeprefix("http://")
                with grpc.insecure_channel(address) as channel:
                    grpc.channel_ready_future(channel).result(timeout=_READY_S)
                    _fill(channel, values)
                yield address
            finally:
                process.kill()


def read(address: str) -> tuple[int, float]:
    """Reads all values, page by page: how many, and seconds it took."""
    seen, key, more = 0, _PREFIX, True
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=_READY_S)
        call = _method(channel, "Range", "RangeResponse")
        began_s = time.perf_counter()
        while more:
            page = call(_made("RangeRequest", key=key, range_end=_END, limit=PAGE))
            seen += sum(len(row.value) > 0 for row in page.kvs)
            more, key = page.more, page.kvs[-1].key + b"\0"
        return seen, time.perf_counter() - began_s


def _fill(channel: grpc.Channel, values: int) -> None:
    call = _method(channel, "Txn", "TxnResponse")
    for start in range(0, values, _PUTS_PER_CALL):
        numbers = range(start, min(start + _PUTS_PER_CALL, values))
        puts = [_made("PutRequest", key=_PREFIX + b"%036d" % n, value=VALUE) for n in numbers]
        # A member that has just begun answers once it leads itself.
        call(
            _made("TxnRequest", success=[_made("RequestOp", request_put=put) for put in puts]),
            timeout=_READY_S,
            wait_for_ready=True,
        )


def _method(channel: grpc.Channel, name: str, answer: str) -> Any:
    return channel.unary_unary(
        f"/etcdserverpb.KV/{name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=_CLASSES[answer].FromString,
    )


def _made(name: str, **fields: Any) -> Any:
    return _CLASSES[name](**fields)


def _declared() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="etcd.proto", package="etcd", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            added = message.field.add(name=field, number=number)
            added.type = kind  # type: ignore[assignment]  # numbers from the enum itself
            added.label = (
                descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
                if of.startswith("*")
                else descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
            )
            if of:
                added.type_name = f".etcd.{of.removeprefix('*')}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"etcd.{name}"))
        for name in _MESSAGES
    }


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


_CLASSES = _declared()
