"""A report's place in a distributed trace is kept with the record, and never costs a result."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2, task_pb2
from resultd_server.errors import FieldInvalid
from resultd_server.service import traces
from tests.support import reports
from tests.support.in_process import Served

SPAN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-00"


async def kept(served: Served, task_id: str) -> tuple[str, str]:
    """(traceparent, tracestate) of a record."""
    meta = (await served.results.GetResult(pb.GetResultRequest(task_id=task_id))).meta
    return meta.traceparent, meta.tracestate


async def store(served: Served, task_id: str, *sent: tuple[str, str], **said: str) -> None:
    """Stores a report with metadata beside it and fields in it."""
    request = reports.success(task_id)
    request.meta.MergeFrom(task_pb2.TaskMeta(**said))  # type: ignore[arg-type]  # texts
    stub: Any = served.results
    await stub.StoreResult(request, metadata=sent)


async def test_the_calls_own_trace_is_kept(served: Served) -> None:
    """What instrumented clients of any language send is read back with the record."""
    await store(served, "a", ("traceparent", SPAN), ("tracestate", "vendor=1"))
    assert await kept(served, "a") == (SPAN, "vendor=1")
    await store(served, "b", ("tracestate", "vendor=1"))
    assert await kept(served, "b") == ("", "")


async def test_what_the_report_says_itself_goes_before(served: Served) -> None:
    """A report sent along by another call keeps its own trace, state and all."""
    await store(served, "a", ("traceparent", OTHER), ("tracestate", "b=2"), traceparent=SPAN)
    assert await kept(served, "a") == (SPAN, "")


@pytest.mark.parametrize("sent", ["", "hello", SPAN[:-1], f"ff{SPAN[2:]}", SPAN.upper()])
async def test_a_trace_that_is_none_costs_no_result(served: Served, sent: str) -> None:
    """In metadata, which the application may not even know of, it is ignored."""
    await store(served, "a", ("traceparent", sent), ("tracestate", "x" * 513))
    assert await kept(served, "a") == ("", "")
    with pytest.raises(grpc.aio.AioRpcError, match=r"meta\.traceparent is not a W3C"):
        await store(served, "b", traceparent=sent or "-")


async def test_a_later_report_has_a_trace_of_its_own(served: Served) -> None:
    """The record says where its present state was reported, or nothing."""
    for parent, state in ((SPAN, "a=1"), ("", "")):
        meta = task_pb2.TaskMeta(task_id="a", traceparent=parent, tracestate=state)
        meta.state = state_pb2.STATE_STARTED
        await served.results.StoreResult(pb.StoreResultRequest(meta=meta))
        assert await kept(served, "a") == (parent, state)


def test_a_state_is_bounded() -> None:
    """512 characters of ASCII pass, another one or an ä does not."""
    traces.state("f", "x" * 512)
    for value in ("x" * 513, "ä", "a\nb"):
        with pytest.raises(FieldInvalid):
            traces.state("f", value)
