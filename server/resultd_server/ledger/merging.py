"""What a record is after a report: what is replaced, what is filled, what is given whole."""

from __future__ import annotations

from google.protobuf.unknown_fields import UnknownFieldSet

from resultd.v1 import state_pb2, task_pb2

_REPLACED = (
    "state", "custom_state", "value", "failure", "progress", "worker", "traceparent", "tracestate",
)  # fmt: skip
_FILLED_WHOLE = (
    "args",
    "kwargs",
    "children",
    "received_time",
    "started_time",
    "done_time",
)
"""Fields a report gives whole: protobuf's merge would mix them with what was there."""

TIME_OF_STATE: dict[int, str] = {
    state_pb2.STATE_RECEIVED: "received_time",
    state_pb2.STATE_STARTED: "started_time",
    state_pb2.STATE_SUCCESS: "done_time",
    state_pb2.STATE_FAILURE: "done_time",
    state_pb2.STATE_REVOKED: "done_time",
    state_pb2.STATE_IGNORED: "done_time",
}
"""The time that comes with a state."""


def merge(old: task_pb2.TaskMeta, report: task_pb2.TaskMeta) -> task_pb2.TaskMeta:
    """The record after an accepted report. May change `old`.

    State, value, failure, progress, worker and trace are replaced; everything else is filled
    where the report has it, and never cleared. Fields of a newer protocol are replaced together:
    protobuf would put them after those of the report before, and the record grow with each.
    """
    given = {field.name for field, _ in report.ListFields()}
    if len(UnknownFieldSet(report)):
        old = _known(old)
    for name in (*_REPLACED, *(name for name in _FILLED_WHOLE if name in given)):
        old.ClearField(name)  # type: ignore[arg-type]  # names of fields, checked by tests
    if (name := TIME_OF_STATE.get(report.state, "")) and name not in given:
        old.ClearField(name)  # type: ignore[arg-type]  # a new attempt has times of its own
    old.MergeFrom(report)
    return old


def _known(meta: task_pb2.TaskMeta) -> task_pb2.TaskMeta:
    """The message without fields that this version does not know; what is inside of others stays.

    `DiscardUnknownFields` would clear that too, of args for instance, and it may not come again.
    """
    known = task_pb2.TaskMeta()
    for field, value in meta.ListFields():
        if hasattr(value, "MergeFrom"):
            getattr(known, field.name).MergeFrom(value)
        else:
            setattr(known, field.name, value)
    return known
