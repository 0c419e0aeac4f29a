"""The door: who is let in, who is counted, who is sent elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest

from resultd_server.errors import Draining, Overloaded
from resultd_server.interceptors import Handler, Raw
from resultd_server.interceptors.limits import Admission, CallBound, bound_streams
from tests.support.in_process import until

CONTEXT: Any = None


class Gate:
    """A handler that ends when told to."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, raw: Raw, context: Any) -> bytes:
        """Answers once the gate is open."""
        await self.open.wait()
        return b"done"


class Load(NamedTuple):
    """So many streams."""

    streams: int


def guarded(handler: Handler) -> tuple[Admission, Handler]:
    """A door and what lies behind it."""
    door = Admission()
    return door, door.intercept("method", handler)


async def test_calls_are_counted_until_they_end_however_they_end() -> None:
    """A call counts from its start to its end, be that an answer, an error or a cancellation."""
    gate = Gate()
    door, call = guarded(gate)
    await door.empty()
    answered, cancelled = (asyncio.ensure_future(call(b"", CONTEXT)) for _ in range(2))
    await until(lambda: door.calls == 2)
    cancelled.cancel()
    await until(lambda: door.calls == 1)
    emptied = asyncio.ensure_future(door.empty())
    gate.open.set()
    assert await answered == b"done"
    await emptied

    async def failing(_: Raw, __: Any) -> bytes:
        raise ZeroDivisionError

    door, call = guarded(failing)
    with pytest.raises(ZeroDivisionError):
        await call(b"", CONTEXT)
    await door.empty()


async def test_a_closed_door_lets_nobody_in_and_everybody_finish() -> None:
    """Once closed, new calls are DRAINING; those inside go on."""
    gate = Gate()
    door, call = guarded(gate)
    inside = asyncio.ensure_future(call(b"", CONTEXT))
    await until(lambda: door.calls == 1)
    door.closed = True
    with pytest.raises(Draining, match="try again"):
        await call(b"", CONTEXT)
    gate.open.set()
    assert await inside == b"done"


async def test_quiet_is_when_nobody_knocks() -> None:
    """While refused callers keep coming it is not quiet."""
    door, call = guarded(Gate())
    door.closed = True
    quiet = asyncio.ensure_future(door.quiet())
    for _ in range(10):
        with pytest.raises(Draining):
            await call(b"", CONTEXT)
        await asyncio.sleep(0.01)
    refused = door.refused
    await quiet
    assert door.refused == refused == 10


async def test_streams_beyond_the_bound_are_refused() -> None:
    """As many streams as the bound are taken, the next is OVERLOADED."""
    gate = Gate()
    gate.open.set()
    assert await bound_streams(Load(2), 3)("method", gate)(b"", CONTEXT) == b"done"
    with pytest.raises(Overloaded, match="3 streams are open"):
        await bound_streams(Load(3), 3)("method", gate)(b"", CONTEXT)


async def test_calls_beyond_their_number_are_sent_away() -> None:
    """L calls are under way, the next is OVERLOADED, and there is room when one is answered."""
    gate = Gate()
    handler = CallBound({"method"}, maximum=2).intercept("method", gate)
    under_way = [asyncio.ensure_future(handler(b"", CONTEXT)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await handler(b"", CONTEXT)
    gate.open.set()
    assert await asyncio.gather(*under_way) == [b"done", b"done"]
    assert await handler(b"", CONTEXT) == b"done"


async def test_calls_beyond_their_bytes_are_sent_away_and_one_alone_is_not() -> None:
    """Requests under way have so many bytes together; one that is larger passes alone."""
    gate = Gate()
    handler = CallBound({"method"}, bytes_max=10).intercept("method", gate)
    large = asyncio.ensure_future(handler(b"x" * 11, CONTEXT))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await handler(b"x", CONTEXT)
    gate.open.set()
    await large
    assert await asyncio.gather(*(handler(b"x" * 5, CONTEXT) for _ in range(2))) == [b"done"] * 2


def test_streams_are_not_counted_among_the_calls() -> None:
    """A method that is not among the unary ones is handed through as it is."""
    gate = Gate()
    assert CallBound({"another"}).intercept("method", gate) is gate
