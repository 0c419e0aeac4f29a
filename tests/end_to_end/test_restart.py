"""The server restarts under open streams: each resumes, and nothing is lost or told twice."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from resultd.v1 import group_pb2, group_service_pb2, stream_pb2
from resultd.v1 import result_service_pb2 as pb
from tests.support import reports
from tests.support.in_process import until
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

STREAMS = 100
TASKS_PER_STREAM = 20
PRODUCERS = 10
RESUMES_MAX = 500
RESUME_AFTER_S = 0.05
FINAL = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
)
OVER = (stream_pb2.END_REASON_COMPLETE, stream_pb2.END_REASON_GONE)
OPTIONS = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200))


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Stubs]:
    """Stubs on a channel that reconnects soon."""
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        yield Stubs(channel)


class Resuming:
    """A reader that resumes as the protocol says, and counts what it was told."""

    def __init__(self, open_call: Callable[[Resuming], Any]) -> None:
        self._open_call = open_call
        self.pending: dict[str, None] = {}
        self.after = b""
        self.told: Counter[str] = Counter()
        self.resumes = -1
        self.request: Callable[[Resuming], pb.WatchRequest] | None = None

    async def run(self) -> None:
        """Until the wait is over."""
        while not await self._over():
            assert self.resumes < RESUMES_MAX
            await asyncio.sleep(RESUME_AFTER_S)

    async def _over(self) -> bool:
        self.resumes += 1
        call = self._open_call(self)
        try:
            if self.request is not None:
                await call.write(self.request(self))
            async for frame in call:
                self._take(frame)
                if frame.control.end_reason in OVER:
                    return True
                if not self.pending and not self.after:
                    return True  # a Watch has no end of its own
        except grpc.aio.AioRpcError as error:
            if error.code() in FINAL:
                raise
        finally:
            call.cancel()
        return False

    def _take(self, frame: Any) -> None:
        for event in frame.events:
            assert event.task.terminal
            self.told[event.task.task_id] += 1
            self.pending.pop(event.task.task_id, None)
        if not isinstance(frame, pb.IterateResponse):
            return
        assert frame.control.kind != stream_pb2.CONTROL_KIND_RESET
        self.after = frame.after or self.after


def wait_for(stubs: Stubs, task_ids: list[str]) -> Resuming:
    """A WaitFor: resumed with the ids still pending."""
    reader = Resuming(lambda me: stubs.results.WaitFor(pb.WaitForRequest(task_ids=me.pending)))
    reader.pending = dict.fromkeys(task_ids)
    return reader


def iterate(stubs: Stubs, group_id: str) -> Resuming:
    """An Iterate: resumed with the last `after`."""
    reader = Resuming(
        lambda me: stubs.results.Iterate(pb.IterateRequest(group_id=group_id, after=me.after))
    )
    reader.pending = {group_id: None}  # never over before COMPLETE
    return reader


def watch(stubs: Stubs, task_ids: list[str]) -> Resuming:
    """A Watch: resumed with the ids still pending."""
    reader = Resuming(lambda _: stubs.results.Watch())
    reader.request = lambda me: pb.WatchRequest(add_task_ids=me.pending)
    reader.pending = dict.fromkeys(task_ids)
    return reader


async def report(stubs: Stubs, task_id: str, group_id: str) -> None:
    """A report, repeated until it is acknowledged."""
    for _ in range(RESUMES_MAX):
        try:
            await stubs.results.StoreResult(reports.success(task_id, group_id=group_id), timeout=10)
        except grpc.aio.AioRpcError as error:
            # CANCELLED: gRPC had taken the call, not yet handed it over, when it stopped.
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise
            await asyncio.sleep(RESUME_AFTER_S)
        else:
            return
    raise AssertionError(f"{task_id} was never acknowledged")


async def produce(stubs: Stubs, todo: list[tuple[str, str]]) -> None:
    """A worker: reports what is to do, one after the other."""
    while todo:
        await report(stubs, *todo.pop())


def free_address() -> str:
    """An address the server can have again after it was killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
async def test_100_streams_resume_over_a_restart(tmp_path: Path, how: str) -> None:
    """Restarted under 100 open streams twice, every stream is told each result exactly once."""
    groups = {f"g{n}": [f"g{n}-{k}" for k in range(TASKS_PER_STREAM)] for n in range(STREAMS)}
    server = ServerProcess(tmp_path, "--drain-s", "5", listen=free_address()).start()
    async with connected(server.address) as stubs:
        for group_id, task_ids in groups.items():
            members = [group_pb2.GroupMember(id=task_id) for task_id in task_ids]
            await stubs.groups.CreateGroup(
                group_service_pb2.CreateGroupRequest(group_id=group_id, members=members, seal=True)
            )
        readers = []
        for number, (group_id, task_ids) in enumerate(groups.items()):
            if number % 3 == 0:
                readers.append(wait_for(stubs, task_ids))
            elif number % 3 == 1:
                readers.append(iterate(stubs, group_id))
            else:
                readers.append(watch(stubs, task_ids))
        reading = [asyncio.create_task(reader.run()) for reader in readers]
        todo = [(task_id, group_id) for group_id, ids in groups.items() for task_id in ids]
        random.Random(7).shuffle(todo)
        total = len(todo)
        producing = [asyncio.create_task(produce(stubs, todo)) for _ in range(PRODUCERS)]
        stop = server.kill if how == "SIGKILL" else server.stop
        for left in (total * 2 // 3, total // 3):
            await until(lambda left=left: len(todo) < left)  # type: ignore[misc]  # no type for it
            # Reports and streams are under way while it goes down and comes back.
            await asyncio.to_thread(stop)
            await asyncio.to_thread(server.start)
        await asyncio.gather(*producing)
        await asyncio.gather(*reading)
    server.stop()
    for reader, task_ids in zip(readers, groups.values(), strict=True):
        assert reader.told == Counter(task_ids)
    assert sum(reader.resumes > 0 for reader in readers) > STREAMS // 2
