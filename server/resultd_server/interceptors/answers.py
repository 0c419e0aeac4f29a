"""Large answers on their way: few at a time to each connection.

gRPC takes an answer at once and keeps it until its peer has taken it. A small call may ask for
3 MiB, so what one connection asks for at once is made bit by bit, as fast as it is taken there.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextvars import ContextVar

from resultd_server import limits
from resultd_server.interceptors import Context, Handler, Raw

_Call = tuple[Context, "asyncio.Task[object] | None"]
_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)
"""Whose answer is made, and the task that ends once gRPC has sent it."""


class _Connection:
    """Large answers on their way to a connection, and calls that wait to make theirs."""

    def __init__(self) -> None:
        self.under_way = 0
        self.waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()


class AnswerBound:
    """Has calls wait before they make a large answer, while their connection has enough of them.

    Not for ever: behind a proxy one caller's answers may lie for others'. What nobody takes is
    `pressure`'s to end.
    """

    def __init__(
        self,
        maximum: int = limits.LARGE_ANSWERS_MAX,
        wait_s: float = limits.LARGE_ANSWERS_WAIT_S,
    ) -> None:
        self._maximum = maximum
        self._wait_s = wait_s
        self._connections: dict[str, _Connection] = {}

    def intercept(self, _: str, handler: Handler) -> Handler:
        """Knows whose call it is."""

        async def wrapped(raw: Raw, context: Context) -> bytes | None:
            _CALL.set((context, asyncio.current_task()))  # for this task, and those it makes
            try:
                return await handler(raw, context)
            finally:
                _CALL.set(None)  # else the call keeps itself, until Python looks for garbage

        return wrapped

    async def make_room(self) -> None:
        """Until the caller's connection may have one more; it has it until it was taken there."""
        call = _CALL.get()
        if call is None or call[1] is None:
            return
        _CALL.set(None)  # an answer asks once; and what waits below would keep the call
        peer = call[0].peer()
        if peer.startswith("unix"):
            return  # all clients of such a socket are one to gRPC: one of them would hold up others
        connection = self._connections.setdefault(peer, _Connection())
        if connection.under_way >= self._maximum:
            await self._wait(connection)
        # One that has waited too long, or was overtaken, makes it one more than there should be.
        self._connections[peer] = connection
        connection.under_way += 1
        # Not the context's own: with that a call keeps itself.
        call[1].add_done_callback(lambda _: self._taken(peer, connection))

    async def _wait(self, connection: _Connection) -> None:
        turn = asyncio.get_running_loop().create_future()
        connection.waiting[turn] = None
        try:
            await asyncio.wait((turn,), timeout=self._wait_s)
        except asyncio.CancelledError:
            if turn.done():  # it is another's
                _wake_one(connection)
            raise
        finally:
            turn.cancel()
            connection.waiting.pop(turn, None)  # whoever has it has left the row

    def _taken(self, peer: str, connection: _Connection) -> None:
        connection.under_way -= 1
        _wake_one(connection)
        if not connection.under_way and self._connections.get(peer) is connection:
            del self._connections[peer]


def _wake_one(connection: _Connection) -> None:
    while connection.waiting:
        turn, _ = connection.waiting.popitem(last=False)
        if not turn.done():
            turn.set_result(None)
            return
