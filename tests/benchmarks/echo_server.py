"""The yardstick of calls and streams: bare grpc.aio on uvloop, bytes in, bytes out.

Echo returns what it gets. Wait sends an empty message, so that who waits knows it is
expected, and then what a Ping for the same name says; it ends with that. KeptEcho and
KeptPing do so once a block of a file is on disk, with one write for all that came together:
what keeping something costs before anything is made of it. Watch, one stream for all that a
process waits for, is told of what KeptTell reports. KeptPart keeps a part of a chord, and is
answered with all of them when they are as many as PartsExpected said.
"""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import uvloop

from resultd.v1 import result_service_pb2 as pb
from tests.benchmarks import bare

_BLOCK = bytes(4096)
_waiting: dict[bytes, asyncio.Future[bytes]] = {}
_watched: dict[str, asyncio.Queue[bytes]] = {}
_sizes: dict[bytes, int] = {}
_parts: defaultdict[bytes, dict[int, bytes]] = defaultdict(dict)


async def _echo(request: bytes, _: object) -> bytes:
    return request


async def _wait(name: bytes, _: object) -> AsyncIterator[bytes]:
    _waiting[name] = asyncio.get_running_loop().create_future()
    try:
        yield b""
        yield await _waiting[name]
    finally:
        del _waiting[name]


async def _ping(request: bytes, _: object) -> bytes:
    """`request`: a name, a zero byte, and what its stream is to say; which is the answer too."""
    name, _, said = request.partition(b"\0")
    _waiting[name].set_result(said)
    return said


async def _parts_expected(request: bytes, _: object) -> bytes:
    """`request`: a chord's name, a zero byte, a number."""
    name, _, size = request.partition(b"\0")
    _sizes[name] = int(size)
    return b""


async def _watch(requests: AsyncIterator[bytes], context: Any) -> None:
    told: asyncio.Queue[bytes] = asyncio.Queue()

    async def read() -> None:
        async for request in requests:
            for task_id in pb.WatchRequest.FromString(request).add_task_ids:
                _watched[task_id] = told
                expected = pb.WatchResponse()
                expected.events.add().task.task_id = task_id
                told.put_nowait(expected.SerializeToString())

    reading = asyncio.create_task(read())
    try:
        while True:
            await context.write(await told.get())
    finally:
        reading.cancel()


class _Disk:
    """A block that is written again and again, each time for everybody who asked meanwhile."""

    def __init__(self) -> None:
        with tempfile.NamedTemporaryFile() as file:
            self._file = os.open(file.name, os.O_RDWR | os.O_DSYNC)
        os.pwrite(self._file, _BLOCK, 0)
        self._thread = ThreadPoolExecutor(1)
        self._asking: list[asyncio.Future[None]] = []
        self._writing = False

    async def written(self) -> None:
        """Returns when a write that began after the call is on disk."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._asking.append(done)
        if not self._writing:
            self._writing = True
            loop.call_soon(self._write)
        await done

    def _write(self) -> None:
        together, self._asking = self._asking, []
        writing = asyncio.get_running_loop().run_in_executor(
            self._thread, os.pwrite, self._file, _BLOCK, 0
        )
        writing.add_done_callback(functools.partial(self._answer, together))

    def _answer(self, together: list[asyncio.Future[None]], writing: asyncio.Future[int]) -> None:
        writing.result()
        for done in together:
            if not done.done():
                done.set_result(None)
        self._writing = bool(self._asking)
        if self._writing:
            self._write()

    async def echo(self, request: bytes, _: object) -> bytes:
        """As Echo."""
        await self.written()
        return request

    async def ping(self, request: bytes, context: object) -> bytes:
        """As Ping."""
        await self.written()
        return await _ping(request, context)

    async def part(self, request: bytes, _: object) -> bytes:
        """`request`: a chord's name, a zero byte, an index, a zero byte, a value in JSON."""
        name, index, value = request.split(b"\0", 2)
        parts = _parts[name]
        parts[int(index)] = value
        last = len(parts) == _sizes.get(name)
        await self.written()
        if not last:
            return b""
        del _parts[name], _sizes[name]
        return b"[%b]" % b",".join([value for _, value in sorted(parts.items())])

    async def tell(self, request: bytes, _: object) -> bytes:
        """A report, for who watches its task."""
        meta = pb.StoreResultRequest.FromString(request).meta
        await self.written()
        meta.terminal = True
        frame = pb.WatchResponse()
        frame.events.add().task.CopyFrom(meta)
        _watched.pop(meta.task_id).put_nowait(frame.SerializeToString())
        return b""


async def _serve() -> None:
    disk = _Disk()
    await bare.serve(
        "Echo",
        {
            "Echo": grpc.unary_unary_rpc_method_handler(_echo),
            "Wait": grpc.unary_stream_rpc_method_handler(_wait),
            "Ping": grpc.unary_unary_rpc_method_handler(_ping),
            "KeptEcho": grpc.unary_unary_rpc_method_handler(disk.echo),
            "KeptPing": grpc.unary_unary_rpc_method_handler(disk.ping),
            "Watch": grpc.stream_stream_rpc_method_handler(_watch),
            "KeptTell": grpc.unary_unary_rpc_method_handler(disk.tell),
            "PartsExpected": grpc.unary_unary_rpc_method_handler(_parts_expected),
            "KeptPart": grpc.unary_unary_rpc_method_handler(disk.part),
        },
    )


if __name__ == "__main__":
    uvloop.run(_serve())
