"""Reports, as workers write them."""

from __future__ import annotations

from collections.abc import Iterable

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2, task_pb2, value_pb2


def success(task_id: str, data: bytes = b"1", *, group_id: str = "") -> pb.StoreResultRequest:
    """A SUCCESS."""
    meta = task_pb2.TaskMeta(
        task_id=task_id,
        state=state_pb2.STATE_SUCCESS,
        value=value_pb2.Payload(data=data),
        group_id=group_id,
    )
    return pb.StoreResultRequest(meta=meta)


def failure(task_id: str, *, group_id: str = "") -> pb.StoreResultRequest:
    """A FAILURE."""
    meta = task_pb2.TaskMeta(
        task_id=task_id,
        state=state_pb2.STATE_FAILURE,
        failure=value_pb2.Failure(type="ValueError", message="no"),
        group_id=group_id,
    )
    return pb.StoreResultRequest(meta=meta)


def state(
    task_id: str, said: state_pb2.State.ValueType, *, current: int = 0
) -> pb.StoreResultRequest:
    """A state that is not terminal."""
    meta = task_pb2.TaskMeta(task_id=task_id, state=said)
    if current:
        meta.progress.current = current
    return pb.StoreResultRequest(meta=meta)


def batch(reports: Iterable[pb.StoreResultRequest]) -> pb.BatchStoreResultsRequest:
    """Many at once."""
    return pb.BatchStoreResultsRequest(reports=reports)
