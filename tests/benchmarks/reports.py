"""What is stored: finished tasks with 300 bytes of value."""

from __future__ import annotations

from collections.abc import Sequence

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2, task_pb2, value_pb2

BATCH = 128
VALUE = value_pb2.Payload(content_type="application/json", data=b'"' + b"x" * 298 + b'"')


def report(task_id: str, group_id: str = "") -> pb.StoreResultRequest:
    """One of them."""
    meta = task_pb2.TaskMeta(
        task_id=task_id, state=state_pb2.STATE_SUCCESS, value=VALUE, group_id=group_id
    )
    return pb.StoreResultRequest(meta=meta)


def batch(task_ids: Sequence[str], group_id: str = "") -> pb.BatchStoreResultsRequest:
    """Several in one call."""
    reports = [report(task_id, group_id) for task_id in task_ids]
    return pb.BatchStoreResultsRequest(reports=reports)
