"""Where in a distributed trace a report was made: W3C Trace Context, kept with the record."""

from __future__ import annotations

import re

from resultd.v1 import task_pb2
from resultd_server import limits
from resultd_server.errors import FieldInvalid
from resultd_server.interceptors import Context

PARENT = "traceparent"
STATE = "tracestate"

# Version, trace, span, flags; ids of zeros alone and version ff are none.
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STATE = re.compile(rf"[\x20-\x7e]{{0,{limits.TRACESTATE_CHARS_MAX}}}")


def parent(field: str, value: str) -> None:
    """A traceparent. Raises FieldInvalid."""
    if not _PARENT.fullmatch(value):
        raise FieldInvalid(
            field,
            "is not a W3C traceparent",
            "send 00-<32 hex digits>-<16 hex digits>-<2 hex digits>, or leave it out",
        )


def state(field: str, value: str) -> None:
    """A tracestate. Raises FieldInvalid."""
    if not _STATE.fullmatch(value):
        raise FieldInvalid(
            field,
            f"is not up to {limits.TRACESTATE_CHARS_MAX} printable characters of ASCII",
            "shorten it, or leave it out",
        )


def adopt(meta: task_pb2.TaskMeta, context: Context) -> None:
    """Takes the call's own trace for the report's. What is none is ignored, as W3C wants it."""
    found_parent = found_state = ""
    for key, value in context.invocation_metadata() or ():
        if key == PARENT and isinstance(value, str) and _PARENT.fullmatch(value):
            found_parent = value
        elif key == STATE and isinstance(value, str) and _STATE.fullmatch(value):
            found_state = value
    if found_parent:
        meta.traceparent = found_parent
        meta.tracestate = found_state
