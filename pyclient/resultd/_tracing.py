"""Where in a distributed trace a report is made, if the application traces with OpenTelemetry."""

from __future__ import annotations

import sys
from typing import Any

from resultd.v1 import task_pb2


def stamp(meta: task_pb2.TaskMeta) -> None:
    """Write the current span into a report; nothing if there is none.

    Whoever has a span has imported OpenTelemetry: it is not imported here, nor needed.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        meta.traceparent = (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        )
        meta.tracestate = context.trace_state.to_header()
