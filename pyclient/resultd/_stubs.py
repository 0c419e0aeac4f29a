"""The services' methods by name, on a channel of either kind."""

from __future__ import annotations

from typing import Any

from resultd.v1 import (
    group_service_pb2_grpc,
    result_service_pb2_grpc,
    worker_service_pb2_grpc,
)

_STUBS: tuple[type[Any], ...] = (
    result_service_pb2_grpc.ResultServiceStub,
    group_service_pb2_grpc.GroupServiceStub,
    worker_service_pb2_grpc.WorkerServiceStub,
)


def methods(channel: Any) -> dict[str, Any]:
    """Return the callables of every method; their names are unique over the services."""
    found: dict[str, Any] = {}
    for stub in _STUBS:
        found.update(vars(stub(channel)))
    return found
