"""Large answers on their way: few at a time to each connection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from resultd_server.interceptors.answers import AnswerBound
from tests.support.in_process import until


class Call:
    """A call of a connection; `taken` says that its answer was."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._sent = asyncio.Event()

    def peer(self) -> str:
        """Whose call it is."""
        return self._peer

    async def sent(self) -> None:
        """Until the answer is on its peer's side, as gRPC's tasks."""
        await self._sent.wait()

    def taken(self) -> None:
        """It is."""
        self._sent.set()


class Answering:
    """Calls that are to be answered with much, and those of them that have room."""

    def __init__(self, bound: AnswerBound) -> None:
        self.begun: list[Call] = []
        self._bound = bound

    async def _handle(self, _: Any, context: Any) -> bytes:
        await self._bound.make_room()
        self.begun.append(context)
        return b""

    async def ask(self, *peers: str) -> list[asyncio.Task[None]]:
        """As many calls, which begin what may begin."""
        handler = self._bound.intercept("method", self._handle)

        async def serve(call: Any) -> None:
            await handler(b"", call)
            await call.sent()

        tasks = [asyncio.ensure_future(serve(Call(peer))) for peer in peers]
        await self.rest()
        return tasks

    async def rest(self) -> None:
        """Until nothing more begins."""
        for _ in range(5):
            await asyncio.sleep(0)


async def test_so_many_are_on_their_way_to_a_connection() -> None:
    """The others of it begin as those are taken, in their order; of another they begin at once."""
    answering = Answering(AnswerBound(2, 60))
    tasks = await answering.ask("a", "a", "a", "b", "a")
    assert [call.peer() for call in answering.begun] == ["a", "a", "b"]
    for number in range(5):
        answering.begun[number].taken()
        await answering.rest()
    await asyncio.gather(*tasks)
    assert len(answering.begun) == 5
    assert answering._bound._connections == {}


async def test_who_waits_too_long_goes_on() -> None:
    """Where nobody takes what lies there; what is taken later is counted all the same."""
    answering = Answering(AnswerBound(1, 0.01))
    tasks = await answering.ask("a", "a", "a")
    await until(lambda: len(answering.begun) == 3)
    for call in answering.begun:
        call.taken()
    await asyncio.gather(*tasks)
    assert answering._bound._connections == {}


@pytest.mark.parametrize("woken", [False, True])
async def test_who_is_gone_leaves_his_turn(woken: bool) -> None:
    """A call that ends while it waits, or as its turn comes: the next one has it."""
    answering = Answering(AnswerBound(1, 60))
    _, gone, last = await answering.ask("a", "a", "a")
    if woken:
        answering.begun[0].taken()
    gone.cancel()
    await answering.rest()
    if not woken:
        answering.begun[0].taken()
    await answering.rest()
    assert gone.cancelled()
    answering.begun[1].taken()
    await last
    assert answering._bound._connections == {}


async def test_who_is_gone_leaves_nothing() -> None:
    """Calls that wait and end, again and again, while the first one's answer lies there."""
    answering = Answering(AnswerBound(1, 60))
    (first,) = await answering.ask("a")
    for _ in range(3):
        for waiting in await answering.ask("a", "a"):
            waiting.cancel()
        await answering.rest()
    (last,) = await answering.ask("a")
    (connection,) = answering._bound._connections.values()
    assert len(connection.waiting) == 1
    for number in range(2):
        answering.begun[number].taken()
        await answering.rest()
    await asyncio.gather(first, last)


async def test_clients_of_a_unix_socket_do_not_wait_for_each_other() -> None:
    """gRPC has one name for all of them."""
    answering = Answering(AnswerBound(1, 60))
    tasks = await answering.ask("unix:", "unix:", "unix:")
    assert len(answering.begun) == 3
    for call in answering.begun:
        call.taken()
    await asyncio.gather(*tasks)


async def test_an_answer_asks_once() -> None:
    """A call with much in several places has one room; and where there is no call, all there is."""
    bound = AnswerBound(1, 60)
    await bound.make_room()

    async def handle(_: Any, __: Any) -> bytes:
        await bound.make_room()
        await bound.make_room()
        return b""

    call: Any = Call("a")
    await asyncio.ensure_future(bound.intercept("method", handle)(b"", call))
    await asyncio.sleep(0)
    assert bound._connections == {}
