"""The event loop of a server process: what gRPC began for a call is freed however the call ends."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # gRPC's own insides, untyped

from resultd_server import event_loop
from tests.support import http2, in_process

CALLS = 40
RECEIVE = (cygrpc.ReceiveMessageOperation(0),)
ANSWER = (cygrpc.SendStatusFromServerOperation((), 0, "", 0),)


@pytest.fixture(autouse=True)
def gRPC_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: N802  it is written so
    """`run` changes gRPC for the process; not for the tests after these."""
    monkeypatch.setattr(cygrpc, "execute_batch", cygrpc.execute_batch)


class Core:
    """gRPC's part in a batch: frees once what it awaits has ended well."""

    def __init__(self) -> None:
        self._ended = 0
        self.future: Any = None

    def freed(self) -> bool:
        """Whether it came to that."""
        return self._ended == 1

    async def execute_batch(self, call: object, operations: object, loop: Any) -> None:
        """As gRPC's: the future is the loop's."""
        assert call == "call"
        assert operations in (RECEIVE, ANSWER)
        self.future = loop.create_future()
        await self.future
        self._ended += 1


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    """In gRPC's place."""
    core = Core()
    monkeypatch.setattr(event_loop, "_execute_batch", core.execute_batch)
    return core


async def awaited(core: Core, operations: tuple[object, ...] = RECEIVE) -> asyncio.Task[None]:
    """A task that waits for a batch under way."""
    loop = asyncio.get_running_loop()

    async def call() -> None:
        await event_loop.execute_batch("call", operations, loop)

    task = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    assert core.future is not None
    return task


def test_a_batch_that_ends_well_is_freed(core: Core) -> None:
    """Who waits goes on once it is."""

    async def work() -> None:
        waiting = await awaited(core)
        assert not core.freed()
        core.future.set_result(None)
        assert core.freed()
        await waiting

    event_loop.run(work())


def test_a_batch_that_fails_is_freed_and_who_waits_is_told(core: Core) -> None:
    """The error is the one gRPC found."""

    async def work() -> None:
        waiting = await awaited(core)
        core.future.set_exception(RuntimeError("failed"))
        assert core.freed()
        with pytest.raises(RuntimeError, match="failed"):
            await waiting

    event_loop.run(work())


@pytest.mark.parametrize("failed", [False, True])
def test_a_batch_nobody_waits_for_any_more_is_freed_when_it_ends(core: Core, failed: bool) -> None:
    """Not before: its memory is gRPC's while it is under way."""

    async def work() -> None:
        waiting = await awaited(core)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not core.freed()
        assert not core.future.cancelled()
        if failed:
            core.future.set_exception(RuntimeError("failed"))
        else:
            core.future.set_result(None)
        assert core.freed()

    event_loop.run(work())


@pytest.mark.parametrize("failed", [False, True])
def test_an_answer_is_freed_whether_or_not_anybody_is_left_to_have_it(
    core: Core, failed: bool
) -> None:
    """Nobody is told of a failure: the peer has gone, and the call is over."""

    async def work() -> None:
        waiting = await awaited(core, ANSWER)
        assert not core.freed()
        if failed:
            core.future.set_exception(RuntimeError("failed"))
        else:
            core.future.set_result(None)
        await waiting
        assert core.freed()
        assert type(asyncio.get_running_loop().create_future()) is asyncio.Future

    event_loop.run(work())


@pytest.mark.parametrize("operations", [RECEIVE, ANSWER])
def test_a_batch_that_cannot_start_leaves_the_loop_as_it_was(
    monkeypatch: pytest.MonkeyPatch, operations: tuple[object, ...]
) -> None:
    """Futures made afterwards are the loop's own."""

    async def refused(*_: object) -> None:
        raise RuntimeError("refused")

    async def work() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="refused"):
            await event_loop.execute_batch("call", operations, loop)
        assert type(loop.create_future()) is asyncio.Future

    monkeypatch.setattr(event_loop, "_execute_batch", refused)
    event_loop.run(work())


def test_other_loops_have_grpc_as_it_is(core: Core) -> None:
    """What runs on a loop of its own, a client for one, is not touched."""

    async def work() -> None:
        waiting = await awaited(core)
        assert isinstance(core.future, asyncio.Future)
        core.future.set_result(None)
        await waiting

    asyncio.run(work())


async def never(_: object, context: Any) -> bytes:
    """Says something, and then has nothing to say until it is cancelled."""
    await context.write(b"once")
    await context.read()
    await asyncio.Event().wait()
    return b""


async def hang_up(calls: list[Any], spare_s: float) -> None:
    """Cancels calls, some before they are served, some that have been answered."""
    for number, call in enumerate(calls):
        if number % 2:
            await call.read()
        call.cancel()
    for call in calls:
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await asyncio.wait_for(call.code(), spare_s)


async def hang_up_unanswered(port: int, answering: asyncio.Semaphore) -> None:
    """Calls whose answers may not be sent, and a connection that ends once all are under way."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    closed = struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 0)
    writer.write(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, closed))
    block = http2.header_block(http2.call_headers("/s/Answer"))
    for stream in range(1, 2 * CALLS, 2):
        writer.write(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block))
        writer.write(http2.frame(http2.DATA, http2.END_STREAM, stream, http2.message(b"")))
    for _ in range(CALLS):
        await answering.acquire()
    writer.transport.abort()


async def storm(all_freed: Callable[[], bool]) -> None:
    """A real server, calls that are cancelled, and the time that gRPC takes to end them.

    Calls of a connection that is gone do not keep a server from stopping: their batches end after
    that, or never where the loop has ended before.
    """
    answering = asyncio.Semaphore(0)

    async def answer(_: object, __: object) -> bytes:
        answering.release()
        return b"answer"

    handlers: dict[str, Any] = {
        "Never": grpc.stream_stream_rpc_method_handler(never),
        "Answer": grpc.unary_unary_rpc_method_handler(answer),
    }
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await hang_up([channel.stream_stream("/s/Never")() for _ in range(CALLS)], 20.0)
        await hang_up_unanswered(port, answering)
        await in_process.until(all_freed)
    finally:
        await server.stop(20.0)


def counted(counts: Counter[str]) -> Callable[..., Coroutine[Any, Any, None]]:
    """gRPC's own `execute_batch`, which says when it is awaited to its good end."""
    original = event_loop._execute_batch

    async def execute_batch(call: object, operations: tuple[object, ...], loop: object) -> None:
        last = type(operations[-1])
        name = "begun" if last in event_loop.CANCELLABLE else "others"
        name = "answers" if last is cygrpc.SendStatusFromServerOperation else name
        counts[name] += 1
        await original(call, operations, loop)
        counts[f"{name} freed"] += 1

    return execute_batch


def test_whatever_is_begun_for_calls_that_are_cancelled_is_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of gRPC itself, client and server: not a batch is left; without this loop some are."""
    counts: Counter[str] = Counter()
    monkeypatch.setattr(event_loop, "_execute_batch", counted(counts))

    def all_freed() -> bool:
        return all(CALLS <= counts[name] == counts[f"{name} freed"] for name in names)

    names = ("begun", "answers")
    event_loop.run(storm(all_freed))
    assert all_freed(), counts
