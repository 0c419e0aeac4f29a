"""Stubs on an asyncio channel: the generated class serves both, its types do not say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import grpc

from resultd.v1 import group_service_pb2_grpc, result_service_pb2_grpc

if TYPE_CHECKING:
    from resultd.v1.group_service_pb2_grpc import GroupServiceAsyncStub
    from resultd.v1.result_service_pb2_grpc import ResultServiceAsyncStub


def results(channel: grpc.aio.Channel) -> ResultServiceAsyncStub:
    """ResultService."""
    return cast("ResultServiceAsyncStub", result_service_pb2_grpc.ResultServiceStub(channel))


def groups(channel: grpc.aio.Channel) -> GroupServiceAsyncStub:
    """GroupService."""
    return cast("GroupServiceAsyncStub", group_service_pb2_grpc.GroupServiceStub(channel))
