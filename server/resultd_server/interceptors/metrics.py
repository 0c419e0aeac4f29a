"""Calls by method and outcome. Wrapped around handlers only where somebody will read it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection

import grpc

from resultd_server.errors import DomainError
from resultd_server.interceptors import Context, Handler, Raw
from resultd_server.interceptors.errors import code_of
from resultd_server.tallies import Histogram

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ALARMING = ("INTERNAL", "DATA_LOSS")
"""One is enough for an alert. A series that is born with its first count has no rate: Prometheus
has to have seen it at 0."""

UNKNOWN = "unknown"
"""What a method is counted as that no service has: clients choose such names freely."""


class Calls:
    """Counts every call once, when it is over.

    `streaming` names the methods whose duration says nothing: a stream lasts as long as
    it is waited for.
    """

    def __init__(self, streaming: Collection[str] = ()) -> None:
        self._streaming = frozenset(streaming)
        #: By (method, code).
        self.handled: Counter[tuple[str, str]] = Counter()
        #: By method.
        self.in_progress: Counter[str] = Counter()
        #: By the reason of the refusal.
        self.refused: Counter[str] = Counter()
        #: Of unary methods.
        self.seconds: dict[str, Histogram] = {}

    def intercept(self, method: str, handler: Handler) -> Handler:
        """Counts what becomes of the calls of one of a method's handlers."""
        handled, in_progress = self.handled, self.in_progress
        in_progress[method] = 0
        for code in ALARMING:
            handled[method, code] += 0
        seconds = Histogram(SECONDS)
        if method not in self._streaming:
            seconds = self.seconds.setdefault(method, seconds)

        async def wrapped(raw: Raw, context: Context) -> bytes | None:
            began_s = time.perf_counter()
            in_progress[method] += 1
            code = "INTERNAL"
            try:
                answer = await handler(raw, context)
                code = "OK"
                return answer
            except DomainError as error:
                code = code_of(error).name
                self.refused[error.reason_name] += 1
                raise
            except (asyncio.CancelledError, grpc.aio.BaseError):
                code = "CANCELLED"
                raise
            finally:
                in_progress[method] -= 1
                handled[method, code] += 1
                seconds.observe(time.perf_counter() - began_s)

        return wrapped

    def unknown(self) -> grpc.GenericRpcHandler:
        """Answers, and counts, the methods that nobody serves: register it last."""
        return _Unknown(self)


class _Unknown(grpc.GenericRpcHandler):
    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.stream_stream_rpc_method_handler(self._refuse)

    async def _refuse(self, _: object, context: Context) -> None:
        self._calls.handled[UNKNOWN, "UNIMPLEMENTED"] += 1
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "There is no such method.")
