"""How calls are taken up: several at a time, and unread where the server has too much to do.

acceptance = Acceptance(server, methods, on_failure)  # before the server starts
await server.start()
acceptance.start()
watching = asyncio.create_task(acceptance.watch())
…
await server.stop(grace)
await acceptance.ended()

gRPC's asyncio keeps one question open to its core, "who calls?", and asks it again three turns of
the event loop after it was answered. So calls that came together are served apart, and a loop
that has much to do in a turn takes up few calls: 180 a second beside commits of large batches,
while the core ends some of the 1,000 that nobody has looked at. Here a few such questions are open
for every method (decision 0015). A gRPC whose insides are others serves as it always does.

gRPC keeps what has come of a request until it is whole, up to the largest there may be. So calls
whose request is on its way are known here, and end when it takes too long or memory is short
(decision 0016).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # gRPC's own insides, untyped

from resultd_server import limits

QUESTIONS = 8
"""Open to gRPC's core for each method: 2 to 32 were tried."""

_LOOK_S = 1.0
"""How often it is looked for requests that take too long."""

_TAKE = {
    (cygrpc, "_schedule_rpc_coro"): ("rpc_coro", "rpc_state", "loop", "method_name"),
    (cygrpc, "_receive_message"): ("grpc_call_wrapper", "loop"),
    (cygrpc, "_finish_handler_with_unary_response"): (
        *("rpc_state", "unary_handler", "request", "servicer_context"),
        *("response_serializer", "loop"),
    ),
    (cygrpc, "_finish_handler_with_stream_responses"): (
        *("rpc_state", "stream_handler", "request", "servicer_context", "loop"),
    ),
    (cygrpc, "_handle_stream_unary_rpc"): ("method_handler", "rpc_state", "loop"),
    (cygrpc, "_handle_stream_stream_rpc"): ("method_handler", "rpc_state", "loop"),
    (cygrpc.AioServer, "_make_request_call_future"): ("self", "method_bytes"),
    (cygrpc.AioServer, "_request_registered_call"): ("self", "method"),
    (cygrpc.AioServer, "is_running"): ("self",),
}
"""gRPC's functions that are called or replaced here, and what they take."""


def _known() -> bool:
    """Whether gRPC's insides are those this module knows."""
    try:
        cygrpc._ServicerContext(None, None, None, None)
    except (AttributeError, TypeError):
        return False
    for (place, name), wanted in _TAKE.items():
        code = getattr(getattr(place, name, None), "__code__", None)
        if code is None or code.co_varnames[: code.co_argcount] != wanted:
            return False
    return hasattr(cygrpc, "_RequestCallError")


KNOWN = _known()

Rpc: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Method(NamedTuple):
    """An RPC.

    Attributes:
        service: its full name.
        name: the method's own.
        serve: what serves it, bytes in, bytes out.
        full: whether there may be no room for another request, whatever its size.
        refuse: what says so, without a request.
        late: what says that the request took too long, without one.
    """

    service: str
    name: str
    serve: Rpc
    full: Callable[[], bool]
    refuse: Rpc
    late: Rpc

    @property
    def path(self) -> str:
        """As it is called."""
        return f"/{self.service}/{self.name}"


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
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """Registers the methods: before the server starts.

        `on_failure` is told when a question ends that should not: calls may go unheard.
        """
        self._known = KNOWN
        self._core: Any = server._server  # type: ignore[attr-defined]  # an attribute of its own
        self._methods = list(methods)
        for each in methods:  # bytes are handed on as they are
            assert each.serve.request_deserializer is each.serve.response_serializer is None
        self._on_failure = on_failure
        self._askers: list[asyncio.Task[None]] = []
        self._calls: set[asyncio.Task[None]] = set()
        # Whose request is on its way, and since when, the oldest first; of those, whose was when
        # memory was short before, and who is answered that it is late.
        self._arriving: dict[asyncio.Task[Any], float] = {}
        self._lasting: set[asyncio.Task[Any]] = set()
        self._ending: set[asyncio.Task[Any]] = set()
        if self._known:
            self._core.ours |= {method.path.encode() for method in methods}
        for service in {method.service for method in methods}:
            handlers = {each.name: each.serve for each in self._methods if each.service == service}
            if self._known:
                server.add_registered_method_handlers(service, handlers)
            else:
                generic = grpc.method_handlers_generic_handler(service, handlers)
                server.add_generic_rpc_handlers((generic,))

    def start(self) -> None:
        """Asks for calls. The server has started."""
        if not self._known:
            return
        for method in self._methods:
            for _ in range(QUESTIONS):
                asker = asyncio.create_task(self._ask(method), name=f"accept-{method.name}")
                asker.add_done_callback(self._look_why)
                self._askers.append(asker)

    def _look_why(self, asker: asyncio.Task[None]) -> None:
        error = None if asker.cancelled() else asker.exception()
        if error is not None:
            self._on_failure(error)

    async def _ask(self, method: Method) -> None:
        """Takes up calls until the server stops. Never to be cancelled.

        gRPC's core writes its answer into what the question holds, whoever waits for it.
        """
        core, calls, full = self._core, self._calls, method.full
        loop = asyncio.get_running_loop()
        path, name = method.path, method.path.encode()
        whole = not method.serve.request_streaming
        while True:
            try:
                state = await core._request_registered_call(name)
            except cygrpc._RequestCallError:
                if core.is_running():
                    continue  # the call was over before it began
                return
            if full():
                work = cygrpc._handle_stream_unary_rpc(method.refuse, state, loop)
            elif whole:
                work = self._receive(method, state, loop)
            else:
                work = cygrpc._handle_stream_stream_rpc(method.serve, state, loop)
            call = loop.create_task(cygrpc._schedule_rpc_coro(work, state, loop, path))
            calls.add(call)  # the loop itself holds tasks weakly
            call.add_done_callback(calls.discard)
            del state, work, call  # the next one may come in hours

    async def _receive(
        self, method: Method, state: object, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Serves a call, of which is known until its request is there that it is on its way.

        As gRPC's `_handle_rpc` does, without its look for the handler: that leaves five objects
        of each call to the garbage collector.
        """
        task: Any = asyncio.current_task()
        self._arriving[task] = loop.time()
        try:
            request = await cygrpc._receive_message(state, loop)
        except asyncio.CancelledError:
            if task not in self._ending:
                raise
            work = cygrpc._handle_stream_unary_rpc(method.late, state, loop)
            del state
            await work
            return
        finally:
            self._arriving.pop(task, None)
            if self._ending:
                self._ending.discard(task)
        if request is None:
            return  # the caller has gone
        context = cygrpc._ServicerContext(state, None, None, loop)
        if method.serve.response_streaming:
            finish = cygrpc._finish_handler_with_stream_responses
            work = finish(state, method.serve.unary_stream, request, context, loop)
        else:
            finish = cygrpc._finish_handler_with_unary_response
            work = finish(state, method.serve.unary_unary, request, context, None, loop)
        # The call's state keeps the error it was refused with, which keeps this frame.
        del state, request, context
        await work

    async def watch(self) -> None:
        """Ends calls whose request takes too long. Runs until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_S)
            self.end_late(loop.time())

    def end_late(self, now_s: float) -> None:
        """Ends the calls whose request is on its way for longer than it may be at `now_s`."""
        self._lasting &= self._arriving.keys()
        for task, since_s in self._arriving.items():
            if now_s - since_s <= limits.REQUEST_S:
                return
            self._end(task)

    def relieve(self) -> int:
        """Ends the calls whose request was on its way at the last such call, too; how many."""
        lasting = self._lasting & self._arriving.keys()
        self._lasting = {*self._arriving}
        return sum(map(self._end, lasting))

    def _end(self, task: asyncio.Task[Any]) -> bool:
        """Has a call answer that it is late, if it does not yet; whether it did not."""
        if task in self._ending:
            return False
        self._ending.add(task)
        return task.cancel()  # what waits for the request

    async def ended(self) -> None:
        """Until no question is open. The server is stopped, which is their answer."""
        await asyncio.gather(*self._askers, return_exceptions=True)
