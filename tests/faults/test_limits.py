"""Limits where they are: one less and the limit pass, one more and ten times are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2, task_pb2, value_pb2
from resultd_server import limits
from tests.support import reports
from tests.support.in_process import Served, serving
from tests.support.refusals import taken_apart

FIELD, LIMIT, LARGE = "FIELD_INVALID", "LIMIT_EXCEEDED", "VALUE_TOO_LARGE"
ADDED_BYTES = 96
"""What the server writes into a record: times, version, existence. They count too."""

Request = Callable[[int], tuple[str, Any]]
"""The method and its request, for a size."""


def _meta(**fields: Any) -> tuple[str, Any]:
    meta = task_pb2.TaskMeta(
        task_id="t", state=state_pb2.STATE_SUCCESS, value=value_pb2.Payload(data=b"1")
    )
    meta.MergeFrom(task_pb2.TaskMeta(**fields))
    return "StoreResult", pb.StoreResultRequest(meta=meta)


def _record_of(size_bytes: int) -> tuple[str, Any]:
    method, request = _meta()
    if size_bytes <= limits.RECORD_BYTES_MAX:
        size_bytes -= ADDED_BYTES
    room = size_bytes - request.meta.ByteSize()
    request.meta.value.data = b"x" * room
    request.meta.value.data = b"x" * (room - (request.meta.ByteSize() - size_bytes))
    assert request.meta.ByteSize() == size_bytes
    return method, request


def _ids(count: int) -> list[str]:
    return [f"t{number}" for number in range(count)]


LIMITS: dict[str, tuple[int, str, Request]] = {
    "bytes of an id": (
        limits.ID_BYTES_MAX, FIELD, lambda n: ("GetResult", pb.GetResultRequest(task_id="x" * n)),
    ),
    "bytes of a name": (limits.SHORT_TEXT_BYTES_MAX, FIELD, lambda n: _meta(name="x" * n)),
    "bytes of a custom state": (
        limits.CUSTOM_STATE_BYTES_MAX, FIELD,
        lambda n: _meta(state=state_pb2.STATE_CUSTOM, custom_state="x" * n),
    ),
    "children": (
        limits.CHILDREN_MAX, LIMIT, lambda n: _meta(children=[task_pb2.Child(id="c")] * n),
    ),
    "labels": (limits.LABELS_MAX, LIMIT, lambda n: _meta(labels={f"k{i}": "v" for i in range(n)})),
    "extra": (
        limits.EXTRA_MAX, LIMIT,
        lambda n: _meta(extra={f"k{i}": value_pb2.Payload() for i in range(n)}),
    ),
    "bytes of a record": (limits.RECORD_BYTES_MAX, LARGE, _record_of),
    "ids of a read": (
        limits.IDS_PER_CALL, LIMIT,
        lambda n: ("BatchGetResults", pb.BatchGetResultsRequest(task_ids=_ids(n))),
    ),
    "ids to forget": (
        limits.IDS_PER_CALL, LIMIT,
        lambda n: ("ForgetResults", pb.ForgetResultsRequest(task_ids=_ids(n))),
    ),
    "reports of a batch": (
        limits.REPORTS_PER_BATCH, LIMIT,
        lambda n: ("BatchStoreResults", reports.batch([reports.success("t")] * n)),
    ),
    "rows of a page": (
        limits.PAGE_MAX, LIMIT, lambda n: ("ListResults", pb.ListResultsRequest(page_size=n)),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def sizes() -> Callable[[int], dict[str, int]]:
    """One less, the limit, one more, ten times as much."""
    return lambda limit: {"L-1": limit - 1, "L": limit, "L+1": limit + 1, "10L": 10 * limit}


async def _reason(served: Served, method: str, request: Any) -> str:
    try:
        await getattr(served.results, method)(request, timeout=20)
    except grpc.aio.AioRpcError as error:
        refusal = taken_apart(error)
        return refusal.reason or refusal.code
    return ""


@pytest.mark.parametrize("name", LIMITS)
async def test_the_limit_passes_and_one_more_does_not(
    name: str, sizes: Callable[[int], dict[str, int]]
) -> None:
    """At L-1 and L the call is answered; at L+1 and 10 L it is refused with the limit's reason."""
    limit, reason, request = LIMITS[name]
    async with serving() as served:
        said = {at: await _reason(served, *request(n)) for at, n in sizes(limit).items()}
    if name == "bytes of a record":
        # Beyond what a request may have, gRPC answers before anybody of ours can.
        assert said.pop("10L") == "RESOURCE_EXHAUSTED"
        assert said == {"L-1": "", "L": "", "L+1": reason}
        return
    assert said == {"L-1": "", "L": "", "L+1": reason, "10L": reason}


async def test_metadata_has_a_limit_and_no_range_of_chance() -> None:
    """Below the limit calls pass, always; above it they are refused, always, and others go on."""
    async with serving() as served:

        async def code(size_bytes: int) -> str:
            metadata = [(f"x-{n}", "v" * 900) for n in range(size_bytes // 950)]
            call = served.results.GetServerInfo(
                pb.GetServerInfoRequest(), metadata=metadata, timeout=20
            )
            return (await call.code()).name

        said = {
            # At a time: gRPC takes a while over each that it refuses.
            size_bytes: set(await asyncio.gather(*(code(size_bytes) for _ in range(20))))
            for size_bytes in (6_000, 9_000, 12_000, 80_000)
        }
    assert said == {
        6_000: {"OK"},
        9_000: {"RESOURCE_EXHAUSTED"},
        12_000: {"RESOURCE_EXHAUSTED"},
        80_000: {"RESOURCE_EXHAUSTED"},
    }


async def test_streams_of_a_connection_beyond_the_limit_wait_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client's call beyond them is not refused: gRPC keeps it back until a stream ends."""
    monkeypatch.setattr("resultd_server.app.OPTIONS", (("grpc.max_concurrent_streams", 3),))
    async with serving() as served:
        await served.results.GetServerInfo(pb.GetServerInfoRequest())
        waits = [served.results.WaitFor(pb.WaitForRequest(task_ids=["never"])) for _ in range(3)]
        for wait in waits:
            await wait.read()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.results.GetServerInfo(pb.GetServerInfoRequest(), timeout=0.3)
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        waits[0].cancel()
        await served.results.GetServerInfo(pb.GetServerInfoRequest(), timeout=20)
