"""Readers that do not read: the server keeps ids for them, not payloads."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from tests.support import reports
from tests.support.frames import SYNCED, Frames, ids
from tests.support.memory import MIB, Peak
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

RECORDS = 60
READERS = 8
GROWTH_BYTES_MAX = 64 * MIB
"""What gRPC buffers for the readers. The payloads together are 480 MiB."""

SLOW = (("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))


@pytest.mark.slow
async def test_readers_that_do_not_read_cost_little_and_miss_nothing(tmp_path: Path) -> None:
    """Eight stalled waits for 60 MiB each cost a few MiB; then each is told every result."""
    task_ids = [f"t{n}" for n in range(RECORDS)]
    with ServerProcess(tmp_path) as server:
        async with (
            grpc.aio.insecure_channel(server.address, options=SLOW) as reading,
            grpc.aio.insecure_channel(server.address, options=SLOW) as writing,
        ):
            readers, writers = Stubs(reading), Stubs(writing)
            waits = [
                Frames(readers.results.WaitFor(pb.WaitForRequest(task_ids=task_ids)))
                for _ in range(READERS)
            ]
            for wait in waits:
                await wait.until(SYNCED)
            before, after = Peak(server), Peak(server)
            # What storing takes by itself, the store's layers above all, is no reader's doing.
            for number in range(RECORDS):
                await writers.results.StoreResult(reports.success(f"w{number}", b"x" * MIB))
                before.look()
            for task_id in task_ids:
                await writers.results.StoreResult(reports.success(task_id, b"x" * MIB))
                after.look()
            assert after.server_bytes - before.server_bytes < GROWTH_BYTES_MAX
            for wait in waits:
                assert sorted(ids(await wait.rest())) == sorted(task_ids)
