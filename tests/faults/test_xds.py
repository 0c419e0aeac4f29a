"""gRPC's own service discovery: a channel that a control plane moves from server to server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from resultd.v1 import group_pb2, group_service_pb2
from resultd.v1 import result_service_pb2 as pb
from tests.support import readers, reports
from tests.support.in_process import Served, serving, until
from tests.support.stubs import Stubs
from tests.support.validator import GroupValidator, TasksValidator

xds = pytest.importorskip("tests.support.xds", reason="xds-protos is not installed")


def value_of(task_id: str) -> bytes:
    """What the task's worker reports."""
    return task_id.encode()


async def report(served: Served, task_ids: list[str]) -> None:
    """Reports tasks to a server by its own address."""
    batch = reports.batch([reports.success(each, value_of(each)) for each in task_ids])
    await served.results.BatchStoreResults(batch)


async def test_streams_follow_a_service_that_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store gets another server, the endpoints change: each event once, none missing."""
    members = [f"t{number}" for number in range(200)]
    tail = GroupValidator("Iterate", value_of, members)
    tasks = TasksValidator("WaitFor", value_of, members)
    watched = TasksValidator("Watch", value_of, members)
    async with xds.ControlPlane() as plane:
        monkeypatch.setenv("GRPC_XDS_BOOTSTRAP_CONFIG", plane.bootstrap)
        waits = [
            readers.iterate(plane.target, tail, "g", pb.MEMBER_ORDER_AS_COMPLETED),
            readers.wait_for(plane.target, tasks),
            readers.watch_tasks(plane.target, watched),
        ]
        async with serving(engine="lmdb", data=tmp_path) as first:
            declared = [group_pb2.GroupMember(id=member) for member in members]
            await first.groups.CreateGroup(
                group_service_pb2.CreateGroupRequest(group_id="g", members=declared, seal=True)
            )
            plane.move(first.address)
            running = [asyncio.create_task(each.run()) for each in waits]
            await report(first, members[:100])
            await until(lambda: min(judge.events for judge in (tail, tasks, watched)) == 100)
        async with serving(engine="lmdb", data=tmp_path) as second:
            assert second.address != first.address
            plane.move(second.address)
            await report(second, members[100:])
            await asyncio.wait_for(asyncio.gather(*running), 40)
    assert plane.refusals == []
    assert [judge.violations for judge in (tail, tasks, watched)] == [[], [], []]
    assert [judge.events for judge in (tail, tasks, watched)] == [200, 200, 200]


async def test_without_a_control_plane_every_call_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A channel that was told of none fails at once, and does not hang."""
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP_CONFIG", raising=False)
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP", raising=False)
    async with grpc.aio.insecure_channel("xds:///elsewhere") as channel:
        stubs = Stubs(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stubs.results.GetServerInfo(pb.GetServerInfoRequest(), timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
