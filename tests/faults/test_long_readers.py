"""Streams that nobody reads beside a load that writes everything again: the file stays small.

LMDB uses a page again once no transaction can see what was in it. A stream that kept one while
it waits for its reader would have the file grow with every checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2
from resultd_server.engine import environment
from resultd_server.engine.journal import FILES
from tests.support import http2, plants, reports
from tests.support.http2 import ANSWER_S, END_HEADERS, END_STREAM, frame
from tests.support.in_process import until
from tests.support.observed import ObservedServer
from tests.support.stubs import Stubs

STREAMS = 500
GROWTH_MAX = 1.1
ROUNDS = 12
RECORDS = 60
VALUE_BYTES = plants.SMALL_CHECKPOINT_BYTES // RECORDS + 1
"""A round is enough for a checkpoint."""

SERVICE = "/resultd.v1.ResultService/"
NO_WINDOW = struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 0)
GROUP, SEEN = "g", ["m0", "m1", "m2"]
WRITTEN = [f"t{n}" for n in range(RECORDS)]
CALLS = (
    ("Iterate", END_STREAM, pb.IterateRequest(group_id=GROUP)),
    ("WaitFor", END_STREAM, pb.WaitForRequest(task_ids=[*SEEN, *WRITTEN[:1]], transitions=True)),
    ("Watch", 0, pb.WatchRequest(add_task_ids=[*SEEN, *WRITTEN[:1]], transitions=True)),
)


class Files(NamedTuple):
    """How large the files of a store are."""

    store_bytes: int
    journal_bytes: int


class Stalled:
    """A connection with streams whose frames may not be sent: their windows are 0."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, address: str) -> Stalled:
        """The connection."""
        host, _, port = address.rpartition(":")
        stalled = cls(*await asyncio.open_connection(host, int(port)))
        stalled._writer.write(http2.PREFACE + frame(http2.SETTINGS, 0, 0, NO_WINDOW))
        return stalled

    async def open(self, count: int) -> None:
        """Opens so many, of every kind; each has begun to answer on return."""
        for number in range(count):
            method, ends, request = CALLS[number % len(CALLS)]
            stream = 2 * number + 1
            block = http2.header_block(http2.call_headers(SERVICE + method))
            said = http2.message(request.SerializeToString())
            self._writer.write(frame(http2.HEADERS, END_HEADERS, stream, block))
            self._writer.write(frame(http2.DATA, ends, stream, said))
        answering = 0
        while answering < count:
            kind = await self._next()
            assert kind not in (http2.DATA, http2.GOAWAY, None)
            answering += kind == http2.HEADERS

    async def close(self) -> None:
        """Ends it; the server never had leave to send anything that was to be read."""
        self._writer.write_eof()
        while (kind := await self._next()) is not None:
            assert kind != http2.DATA
        self._writer.close()
        await self._writer.wait_closed()

    async def _next(self) -> int | None:
        """The kind of the next frame; None at the end."""
        try:
            head = await asyncio.wait_for(self._reader.readexactly(9), ANSWER_S)
        except asyncio.IncompleteReadError:
            return None
        await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        return head[3]


def written(number: int) -> list[pb.StoreResultRequest]:
    """What a round writes: every record again."""
    said = []
    for task_id in WRITTEN:
        said.append(reports.state(task_id, state_pb2.STATE_PROGRESS, current=number))
        said[-1].meta.value.data = bytes([number]) * VALUE_BYTES
    return said


async def write(
    stubs: Stubs, opened: environment.Environment, said: list[pb.StoreResultRequest]
) -> None:
    """One commit, and the checkpoint that it is enough for."""
    before = opened.info()["last_txnid"]
    answer = await stubs.results.BatchStoreResults(reports.batch(said))
    assert {each.result.disposition for each in answer.outcomes} == {pb.DISPOSITION_APPLIED}
    await until(lambda: is_past(opened, before))


def is_past(opened: environment.Environment, transaction: int) -> bool:
    """Whether LMDB has had another transaction since: a checkpoint."""
    return bool(opened.info()["last_txnid"] > transaction)


async def load(directory: Path, streams: int, fault: str = "short-checkpoints") -> Files:
    """What the load leaves, on a server with so many streams that are never read."""
    data = directory / "data"
    server = ObservedServer(directory, "--workers", "1", fault=fault)
    with server, contextlib.closing(environment.open_to_read(data)) as opened:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stubs = Stubs(channel)
            # With it come a group and tasks that each stream has to tell of.
            done = [reports.success(task_id, group_id=GROUP) for task_id in SEEN]
            await write(stubs, opened, [*done, *written(0)])
            stalled = await Stalled.connect(server.address)
            await stalled.open(streams)
            for number in range(1, ROUNDS):
                await write(stubs, opened, written(number))
            assert server.look()["streams"] == streams
            await stalled.close()
    journal_bytes = sum((data / name).stat().st_size for name in FILES)
    return Files((data / "data.mdb").stat().st_size, journal_bytes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What the load leaves where nobody reads."""
    return asyncio.run(load(tmp_path_factory.mktemp("alone"), 0))


async def test_500_streams_that_nobody_reads_leave_the_store_small(
    tmp_path: Path, alone: Files
) -> None:
    """The same load with them and without: neither the store nor the journal is 10 % larger."""
    beside = await load(tmp_path, STREAMS)
    assert beside.store_bytes <= GROWTH_MAX * alone.store_bytes
    assert beside.journal_bytes <= GROWTH_MAX * alone.journal_bytes


async def test_streams_that_keep_their_read_transactions_are_found_out(
    tmp_path: Path, alone: Files
) -> None:
    """One of each kind is enough: the store grows with every checkpoint."""
    beside = await load(tmp_path, len(CALLS), "long-reads")
    assert beside.store_bytes > 2 * alone.store_bytes
