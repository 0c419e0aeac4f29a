"""The least that a batch of results takes in Python: no rules, no namespace, nobody waits.

A bare grpc.aio server on uvloop. It parses a batch, has its records' bytes again, answers once
one write for all that came together is on disk, with its checksum, and puts each record and
when it expires into LMDB later, 10,000 at a time, on a thread of its own: what the server must
do whatever its rules are.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from operator import add
from pathlib import Path
from zlib import crc32

import grpc
import lmdb
import uvloop

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2
from tests.benchmarks import bare

_MAP_BYTES = 16 * 1024**3
_FILE_BYTES = 16 * 1024**2
_CHECKPOINT_ROWS = 10_000
_OUTCOME = pb.StoreOutcome(
    result=pb.StoreResultResponse(
        disposition=pb.DISPOSITION_APPLIED, version=1, state=state_pb2.STATE_SUCCESS
    )
)


class Floor:
    """Rows that are on disk, and those that are still on their way into LMDB."""

    def __init__(self, directory: str) -> None:
        self._file = os.open(Path(directory) / "journal", os.O_RDWR | os.O_CREAT | os.O_DSYNC)
        os.pwrite(self._file, bytes(_FILE_BYTES), 0)
        self._env = lmdb.open(directory, map_size=_MAP_BYTES, max_dbs=2, lib_version=0)
        self._dbs = [self._env.open_db(name) for name in (b"tasks", b"expiry")]
        self._writer, self._checkpoint = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._rows: dict[bytes, bytes] = {}
        self._asking: list[tuple[bytes, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def store(self, request: bytes, _: object) -> bytes:
        """BatchStoreResults: the answer of a batch whose reports are all new."""
        reports = [each.meta for each in pb.BatchStoreResultsRequest.FromString(request).reports]
        rows = {meta.task_id.encode(): meta.SerializeToString() for meta in reports}
        done = asyncio.get_running_loop().create_future()
        self._asking.append((b"".join([*rows, *rows.values()]), done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        await done
        self._rows.update(rows)
        if len(self._rows) >= _CHECKPOINT_ROWS:
            self._checkpoint.submit(self._put, self._rows)
            self._rows = {}
        return pb.BatchStoreResultsResponse(outcomes=[_OUTCOME]).SerializeToString() * len(rows)

    async def _write(self) -> None:
        while self._asking:
            together, self._asking = self._asking, []
            entry = b"".join([part for part, _ in together])
            await asyncio.get_running_loop().run_in_executor(self._writer, self._append, entry)
            for _, done in together:
                if not done.done():
                    done.set_result(None)
        self._writing = None

    def _append(self, entry: bytes) -> None:
        os.pwrite(self._file, crc32(entry).to_bytes(4, "little") + entry, 0)

    def _put(self, rows: dict[bytes, bytes]) -> None:
        keys = sorted(rows)
        due = [b"\0" * 9 + key for key in keys]
        columns = (keys, [rows[key] for key in keys]), (due, [b""] * len(due))
        with self._env.begin(write=True) as txn:
            for db, (named, values) in zip(self._dbs, columns, strict=True):
                checksums = map(crc32, values, map(crc32, named))
                sealed = map(add, values, (each.to_bytes(4, "little") for each in checksums))
                with txn.cursor(db=db) as cursor:
                    cursor.putmulti(zip(named, sealed, strict=True))


async def _serve(directory: str) -> None:
    store = Floor(directory).store
    await bare.serve("Floor", {"Store": grpc.unary_unary_rpc_method_handler(store)})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as where:
        uvloop.run(_serve(where))
