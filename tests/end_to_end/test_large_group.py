"""A large group is streamed in memory that does not grow with it, on both sides."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import pytest

from resultd.v1 import group_service_pb2, stream_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server import limits
from tests.support import reports
from tests.support.frames import Frames
from tests.support.memory import MIB, Peak
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

GROWTH_BYTES_MAX = 12 * MIB
"""Buffers and allocators. 100,000 records held would take three times as much."""


async def fill(stubs: Stubs, group_id: str, count: int) -> None:
    """A sealed group whose members are all done."""
    await stubs.groups.CreateGroup(group_service_pb2.CreateGroupRequest(group_id=group_id))
    for start in range(0, count, limits.REPORTS_PER_BATCH):
        said = [
            reports.success(f"{group_id}-{n}", b"x" * 100, group_id=group_id)
            for n in range(start, min(count, start + limits.REPORTS_PER_BATCH))
        ]
        await stubs.results.BatchStoreResults(reports.batch(said))
    await stubs.groups.SealGroup(group_service_pb2.SealGroupRequest(group_id=group_id))


async def stream(stubs: Stubs, group_id: str, order: pb.MemberOrder.ValueType, peak: Peak) -> int:
    """Iterates over the whole group; how many members came, each once and in order."""
    call = Frames(stubs.results.Iterate(pb.IterateRequest(group_id=group_id, order=order)))
    position = 0
    while True:
        frame = await call.next()
        for event in frame.events:
            position += 1
            place = event.position if order == pb.MEMBER_ORDER_AS_COMPLETED else event.index + 1
            assert place == position
        if frame.control.kind == stream_pb2.CONTROL_KIND_END:
            assert frame.control.end_reason == stream_pb2.END_REASON_COMPLETE
            assert frame.counts.done == position
            return position
        if position // limits.FRAME_EVENTS_MAX % 100 == 0:
            peak.look()


COUNTS = [
    100_000,
    pytest.param(
        1_000_000,
        marks=[
            pytest.mark.skipif("TEST_LARGE" not in os.environ, reason="a minute: TEST_LARGE=1"),
            pytest.mark.timeout(300),
        ],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
async def test_a_large_group_is_streamed_in_flat_memory(tmp_path: Path, count: int) -> None:
    """However large the group, streaming it takes no more memory than a group of 10,000."""
    with ServerProcess(tmp_path) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stubs = Stubs(channel)
            await fill(stubs, "small", 10_000)
            await fill(stubs, "large", count)
            small, large = Peak(server), Peak(server)
            for order in (pb.MEMBER_ORDER_MEMBER, pb.MEMBER_ORDER_AS_COMPLETED):
                assert await stream(stubs, "small", order, small) == 10_000
            small.look()
            assert await stream(stubs, "large", pb.MEMBER_ORDER_AS_COMPLETED, large) == count
            large.look()
    print(f"{count}: server {large.server_bytes / MIB:.0f}, reader {large.reader_bytes / MIB:.0f}")
    assert large.server_bytes - small.server_bytes < GROWTH_BYTES_MAX
    assert large.reader_bytes - small.reader_bytes < GROWTH_BYTES_MAX
