"""Methods by name."""

from __future__ import annotations

import grpc

from resultd import _stubs
from resultd.v1 import group_service_pb2, result_service_pb2, worker_service_pb2


def test_every_method_of_the_protocol_is_there() -> None:
    """Under a name of its own."""
    services = [
        module.DESCRIPTOR.services_by_name.values()
        for module in (result_service_pb2, group_service_pb2, worker_service_pb2)
    ]
    names = [method.name for group in services for service in group for method in service.methods]
    with grpc.insecure_channel("127.0.0.1:9") as channel:
        assert sorted(_stubs.methods(channel)) == sorted(names)
