"""How calls are taken up: several at a time, and unread where the server has too much to do.

acceptance = Acceptance(server, methods, bound)  # before the server starts
await server.start()
acceptance.start()
…
await server.stop(grace)
await acceptance.ended()

gRPC's asyncio keeps one question open to its core, "who calls?", and asks it again three turns of
the event loop after it was answered. So calls that came together are served apart, and a loop
that has much to do in a turn takes up few calls: 180 a second beside commits of large batches,
while the core ends some of the 1,000 that nobody has looked at. Here a few such questions are open
for every method (decision 0015). A gRPC whose insides are others serves as it always does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # gRPC's own insides, untyped

QUESTIONS = 8
"""Open to gRPC's core for each method: 2 to 32 were tried."""

_TAKE = {
    (cygrpc, "_handle_rpc"): (
        "method_name",
        "method_resolver",
        "interceptors",
        "rpc_state",
        "loop",
        "concurrency_exceeded",
    ),
    (cygrpc, "_schedule_rpc_coro"): ("rpc_coro", "rpc_state", "loop", "method_name"),
    (cygrpc.AioServer, "_make_request_call_future"): ("self", "method_bytes"),
    (cygrpc.AioServer, "_request_registered_call"): ("self", "method"),
    (cygrpc.AioServer, "is_running"): ("self",),
}
"""gRPC's functions that are called or replaced here, and what they take."""


def _known() -> bool:
    """Whether gRPC's insides are those this module knows."""
    for (place, name), wanted in _TAKE.items():
        code = getattr(getattr(place, name, None), "__code__", None)
        if code is None or code.co_varnames[: code.co_argcount] != wanted:
            return False
    return hasattr(cygrpc, "_MethodResolver") and hasattr(cygrpc, "_RequestCallError")


KNOWN = _known()

Rpc: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Method(NamedTuple):
    """An RPC: its service and name, what serves it, and what refuses it unread, if anything."""

    service: str
    name: str
    serve: Rpc
    refuse: Rpc | None

    @property
    def path(self) -> str:
        """As it is called."""
        return f"/{self.service}/{self.name}"


class Bound(Protocol):
    """What there is to know about how much is under way."""

    def full(self) -> bool:
        """Whether there may be no room for another request, whatever its size."""


class _Core(cygrpc.AioServer):  # type: ignore[misc]  # untyped
    """gRPC's, which leaves the methods of `ours` alone: their calls are asked for elsewhere."""

    ours: frozenset[bytes] = frozenset()
    _never: asyncio.Future[object] | None = None

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[object]:
        if method not in self.ours:
            return super()._make_request_call_future(method)  # type: ignore[no-any-return]  # untyped
        if self._never is None:
            self._never = asyncio.get_running_loop().create_future()  # cancelled by the stop
        return self._never  # one for all: gRPC waits for each it was given


def make_server(options: Sequence[tuple[str, int]]) -> grpc.aio.Server:
    """A `grpc.aio.server` that an Acceptance can be made for."""
    if not KNOWN:
        return grpc.aio.server(options=options)
    whole = cygrpc.AioServer
    cygrpc.AioServer = _Core
    try:
        return grpc.aio.server(options=options)
    finally:
        cygrpc.AioServer = whole


class Acceptance:
    """Takes up the calls of methods, from `start` until the server is stopped."""

    def __init__(
        self,
        server: grpc.aio.Server,
        methods: Sequence[Method],
        bound: Bound,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Registers the methods: before the server starts.

        `on_failure` is told when a question ends that should not: calls may go unheard.
        """
        self._known = KNOWN
        self._core: Any = server._server  # type: ignore[attr-defined]  # an attribute of its own
        self._methods = methods
        self._bound = bound
        self._on_failure = on_failure
        self._askers: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[None]] = set()
        if self._known:
            self._core.ours |= {method.path.encode() for method in methods}
        for service in {method.service for method in methods}:
            handlers = {each.name: each.serve for each in methods if each.service == service}
            if self._known:
                server.add_registered_method_handlers(service, handlers)
            else:
                generic = grpc.method_handlers_generic_handler(service, handlers)
                server.add_generic_rpc_handlers((generic,))

    def start(self) -> None:
        """Asks for calls. The server has started."""
        if not self._known:
            return
        serve = {each.path: each.serve for each in self._methods}
        refuse = {each.path: each.refuse or each.serve for each in self._methods}
        resolvers = cygrpc._MethodResolver([], serve), cygrpc._MethodResolver([], refuse)
        for method in self._methods:
            for _ in range(QUESTIONS):
                work = self._ask(method.path, *resolvers)
                asker = asyncio.create_task(work, name=f"accept-{method.name}")
                asker.add_done_callback(self._look_why)
                self._askers.append(asker)

    def _look_why(self, asker: asyncio.Task[None]) -> None:
        error = None if asker.cancelled() else asker.exception()
        if error is not None:
            self._on_failure(error)

    async def _ask(self, path: str, serve: object, refuse: object) -> None:
        """Takes up calls until the server stops. Never to be cancelled.

        gRPC's core writes its answer into what the question holds, whoever waits for it.
        """
        core, calls, full = self._core, self._calls, self._bound.full
        loop = asyncio.get_running_loop()
        name = path.encode()
        while True:
            try:
                state = await core._request_registered_call(name)
            except cygrpc._RequestCallError:
                if core.is_running():
                    continue  # the call was over before it began
                return
            resolver = refuse if full() else serve
            work = cygrpc._handle_rpc(path, resolver, (), state, loop, False)
            call = loop.create_task(cygrpc._schedule_rpc_coro(work, state, loop, path))
            calls.add(call)  # the loop itself holds tasks weakly
            call.add_done_callback(calls.discard)
            del state, work, call  # the next one may come in hours

    async def ended(self) -> None:
        """Until no question is open. The server is stopped, which is their answer."""
        await asyncio.gather(*self._askers, return_exceptions=True)
