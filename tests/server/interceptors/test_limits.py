"""The door: who is let in, who is counted, who is sent elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest

from resultd_server import limits
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


class Large(bytes):
    """A request that says it is large."""

    size_bytes = 0

    def __len__(self) -> int:
        return self.size_bytes


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


@pytest.mark.parametrize("maximum", [3, limits.STREAMS_MAX])
async def test_streams_beyond_the_bound_are_refused(maximum: int) -> None:
    """The stream that makes L-1 or L is taken, the one that makes L+1 or 10 L is OVERLOADED."""
    gate = Gate()
    gate.open.set()
    bound = (maximum,) if maximum != limits.STREAMS_MAX else ()  # the server says nothing
    for there in (maximum - 2, maximum - 1):
        assert await bound_streams(Load(there), *bound)("method", gate)(b"", CONTEXT) == b"done"
    for there in (maximum, 10 * maximum - 1):
        with pytest.raises(Overloaded, match=f"{maximum} streams are open"):
            await bound_streams(Load(there), *bound)("method", gate)(b"", CONTEXT)


@pytest.mark.parametrize(("maximum", "beyond"), [(limits.CALLS_MAX, 1), (20, 180)])
async def test_calls_beyond_their_number_are_sent_away(maximum: int, beyond: int) -> None:
    """L calls are under way, those up to 10 L are OVERLOADED, and there is room again after one."""
    gate = Gate()
    bound = CallBound() if maximum == limits.CALLS_MAX else CallBound(maximum)
    handler = bound.intercept("method", gate)
    under_way = [asyncio.ensure_future(handler(b"", CONTEXT)) for _ in range(maximum)]
    await asyncio.sleep(0)
    assert not any(call.done() for call in under_way)
    for _ in range(beyond):
        with pytest.raises(Overloaded):
            await handler(b"", CONTEXT)
    gate.open.set()
    assert set(await asyncio.gather(*under_way)) == {b"done"}
    assert await handler(b"", CONTEXT) == b"done"


@pytest.mark.parametrize(
    ("more", "taken"), [(-1, True), (0, True), (1, False), (9 * limits.CALLS_BYTES_MAX, False)]
)
async def test_the_bytes_of_calls_are_counted_together(more: int, taken: bool) -> None:
    """Beside one call under way another is taken that makes L-1 or L bytes with it, not more."""
    gate = Gate()
    handler = CallBound().intercept("method", gate)
    first = asyncio.ensure_future(handler(b"x", CONTEXT))
    await asyncio.sleep(0)
    # Nobody reads it: the same code counts what only says that it is so large.
    large = Large()
    large.size_bytes = limits.CALLS_BYTES_MAX - 1 + more
    second = asyncio.ensure_future(handler(large, CONTEXT))
    await asyncio.sleep(0)
    assert second.done() is not taken
    gate.open.set()
    said = await asyncio.gather(first, second, return_exceptions=True)
    assert said[0] == b"done"
    assert said[1] == b"done" if taken else isinstance(said[1], Overloaded)


async def test_calls_beyond_their_bytes_are_sent_away_and_one_alone_is_not() -> None:
    """Requests under way have so many bytes together; one that is larger passes alone."""
    gate = Gate()
    handler = CallBound(bytes_max=10).intercept("method", gate)
    large = asyncio.ensure_future(handler(b"x" * 11, CONTEXT))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await handler(b"x", CONTEXT)
    gate.open.set()
    await large
    assert await asyncio.gather(*(handler(b"x" * 5, CONTEXT) for _ in range(2))) == [b"done"] * 2


@pytest.mark.parametrize(("more", "full"), [(-1, False), (0, False), (1, True)])
async def test_no_request_is_read_where_the_largest_has_no_room(more: int, full: bool) -> None:
    """At L-1 and L bytes under way, less the largest request, the next is read; at L+1 not."""
    gate, bound = Gate(), CallBound()
    handler = bound.intercept("method", gate)
    assert not bound.full()
    large = Large()
    large.size_bytes = limits.CALLS_BYTES_MAX - limits.REQUEST_BYTES_MAX + more
    call = asyncio.ensure_future(handler(large, CONTEXT))
    await asyncio.sleep(0)
    assert bound.full() is full
    gate.open.set()
    await call
    assert not bound.full()


async def test_no_request_is_read_where_there_are_too_many_calls() -> None:
    """L-1 calls: the next is read; L: it is not."""
    gate, bound = Gate(), CallBound(3)
    handler = bound.intercept("method", gate)
    calls = [asyncio.ensure_future(handler(b"", CONTEXT)) for _ in range(2)]
    await asyncio.sleep(0)
    assert not bound.full()
    calls.append(asyncio.ensure_future(handler(b"", CONTEXT)))
    await asyncio.sleep(0)
    assert bound.full()
    gate.open.set()
    await asyncio.gather(*calls)
