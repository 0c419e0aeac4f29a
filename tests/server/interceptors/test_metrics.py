"""What is counted of calls."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from resultd.v1 import error_pb2
from resultd_server.errors import Overloaded
from resultd_server.interceptors import Raw
from resultd_server.interceptors.metrics import Calls
from tests.support.in_process import until

CONTEXT: Any = None


def raising(error: BaseException | None) -> Any:
    """A handler that ends so."""

    async def handler(raw: Raw, context: Any) -> bytes:
        if error is not None:
            raise error
        return b"done"

    return handler


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, "OK"),
        (Overloaded("full"), "UNAVAILABLE"),
        (asyncio.CancelledError(), "CANCELLED"),
        (grpc.aio.UsageError(), "CANCELLED"),
        (ZeroDivisionError(), "INTERNAL"),
    ],
)
async def test_every_end_is_counted_once(error: BaseException | None, code: str) -> None:
    """A call counts under its code however it ends, and the error goes on."""
    calls = Calls()
    handler = calls.intercept("m", raising(error))
    (ended,) = await asyncio.gather(handler(b"", CONTEXT), return_exceptions=True)
    assert type(ended) is type(error or b"done")
    assert +calls.handled == {("m", code): 1}
    assert calls.in_progress["m"] == 0
    assert calls.seconds["m"].count == 1


async def test_the_handlers_of_a_method_count_together() -> None:
    """What serves it and what refuses it unread are wrapped apart, and have one histogram."""
    calls = Calls()
    serve = calls.intercept("m", raising(None))
    refuse = calls.intercept("m", raising(Overloaded("full")))
    await serve(b"", CONTEXT)
    with pytest.raises(Overloaded):
        await refuse(b"", CONTEXT)
    assert calls.seconds["m"].count == 2
    assert +calls.handled == {("m", "OK"): 1, ("m", "UNAVAILABLE"): 1}


def test_what_alarms_is_there_before_it_happens() -> None:
    """Prometheus sees the first INTERNAL as a step from 0, and not as a series that begins."""
    calls = Calls()
    calls.intercept("m", raising(None))
    assert calls.handled == {("m", "INTERNAL"): 0, ("m", "DATA_LOSS"): 0}


async def test_refusals_are_counted_by_reason() -> None:
    """A refusal counts under the reason that its caller is told."""
    calls = Calls()
    with pytest.raises(Overloaded):
        await calls.intercept("m", raising(Overloaded("full")))(b"", CONTEXT)
    name = error_pb2.ErrorReason.Name(error_pb2.ERROR_REASON_OVERLOADED)
    assert calls.refused == {name.removeprefix("ERROR_REASON_"): 1}


async def test_a_call_under_way_is_seen_and_a_streams_duration_is_not() -> None:
    """In progress while it runs; how long a stream was open says nothing of the server."""
    calls = Calls(streaming={"s"})
    gate = asyncio.Event()

    async def handler(raw: Raw, context: Any) -> None:
        await gate.wait()

    running = asyncio.ensure_future(calls.intercept("s", handler)(b"", CONTEXT))
    await until(lambda: calls.in_progress["s"] == 1)
    gate.set()
    await running
    assert (calls.in_progress["s"], calls.seconds) == (0, {})
