"""Calls with raw bytes, for what generated code refuses to send."""

from __future__ import annotations

import grpc
from google.protobuf.descriptor import MethodDescriptor

DEADLINE_S = 20.0
Metadata = tuple[tuple[str, str | bytes], ...]


def call(
    channel: grpc.Channel, method: MethodDescriptor, raw: bytes, metadata: Metadata = ()
) -> list[bytes]:
    """Every answer of a call with one request. Raises RpcError."""
    assert method.containing_service is not None
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.client_streaming:
        bidi = channel.stream_stream(path, _same, _same)
        return list(bidi(iter([raw]), timeout=DEADLINE_S, metadata=metadata))
    if method.server_streaming:
        streaming = channel.unary_stream(path, _same, _same)
        return list(streaming(raw, timeout=DEADLINE_S, metadata=metadata))
    unary = channel.unary_unary(path, _same, _same)
    return [unary(raw, timeout=DEADLINE_S, metadata=metadata)]


def _same(raw: bytes) -> bytes:
    return raw
