"""The three services on one channel, for asyncio.

The generated classes serve both kinds of channel; their types do not say so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import grpc

from resultd.v1 import (
    group_service_pb2_grpc,
    result_service_pb2_grpc,
    worker_service_pb2_grpc,
)

if TYPE_CHECKING:
    from resultd.v1.group_service_pb2_grpc import GroupServiceAsyncStub
    from resultd.v1.result_service_pb2_grpc import ResultServiceAsyncStub
    from resultd.v1.worker_service_pb2_grpc import WorkerServiceAsyncStub


class Stubs:
    """`results`, `groups` and `workers` of a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.results = cast(
            "ResultServiceAsyncStub", result_service_pb2_grpc.ResultServiceStub(channel)
        )
        self.groups = cast(
            "GroupServiceAsyncStub", group_service_pb2_grpc.GroupServiceStub(channel)
        )
        self.workers = cast(
            "WorkerServiceAsyncStub", worker_service_pb2_grpc.WorkerServiceStub(channel)
        )
