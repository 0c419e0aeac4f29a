"""Reports carry the span they are made in."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

import resultd
from resultd import _tracing
from resultd.v1 import task_pb2

CONTEXT = SpanContext(
    trace_id=0x0AF7651916CD43DD8448EB211C80319C,
    span_id=0xB7AD6B7169203331,
    is_remote=False,
    trace_flags=TraceFlags(TraceFlags.SAMPLED),
    trace_state=TraceState([("vendor", "1")]),
)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("together", [False, True])
def test_a_report_made_in_a_span_carries_it(client: resultd.Client, together: bool) -> None:
    """One by one or in a batch: readers find the span that stored the result."""
    task_id = f"traced-{together}"
    with trace.use_span(NonRecordingSpan(CONTEXT)):
        if together:
            client.store_results([(task_id, 1)])
        else:
            client.store_result(task_id, 1)
    meta = client.AsyncResult(task_id)._get_task_meta()
    assert (meta["traceparent"], meta["tracestate"]) == (PARENT, "vendor=1")


def test_outside_a_span_there_is_nothing(client: resultd.Client) -> None:
    """OpenTelemetry is there and no span is: the report says nothing of one."""
    client.store_result("untraced", 1)
    assert client.AsyncResult("untraced")._get_task_meta()["traceparent"] is None


def test_opentelemetry_is_not_imported() -> None:
    """Whoever does not trace pays nothing: the client neither needs nor loads it."""
    program = (
        "import sys, resultd._tracing as t; from resultd.v1 import task_pb2 as p\n"
        "t.stamp(m := p.TaskMeta())\n"
        "sys.exit(any(n.startswith('opentelemetry') for n in sys.modules) or m.traceparent != '')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_stamp_is_w3cs() -> None:
    """55 characters of version, trace, span and flags."""
    message = task_pb2.TaskMeta()
    with trace.use_span(NonRecordingSpan(CONTEXT)):
        _tracing.stamp(message)
    assert message.traceparent == PARENT
