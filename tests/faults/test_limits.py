"""Limits where they are: at L-1, L, L+1 and 10 L of every field of every RPC, from the descriptors.

Accepted means that no limit refuses the call; what else is said to it is other tests' concern.
"""

from __future__ import annotations

import contextlib
from typing import Any

import grpc
import pytest

from resultd.v1 import error_pb2, group_pb2, group_service_pb2, state_pb2, task_pb2, value_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server import limits
from resultd_server.ledger import wire
from resultd_server.service import validate
from tests.support.in_process import Served, serving
from tests.support.refusals import taken_apart
from tests.support.request_fields import METHODS, TEMPLATES, edges

STORE, BATCH = "resultd.v1.ResultService.StoreResult", "resultd.v1.ResultService.BatchStoreResults"
WATCH = "resultd.v1.ResultService.Watch"
WATCH_REVOCATIONS = "resultd.v1.WorkerService.WatchRevocations"
CREATE = "resultd.v1.GroupService.CreateGroup"
LIMIT, LARGE = "LIMIT_EXCEEDED", "VALUE_TOO_LARGE"
UNKNOWN_GROUP = "GROUP_NOT_FOUND"
NOON_MS = 1_800_000_000_123
ANSWER_S = 20.0

Points = dict[str, tuple[int, str]]


def points(limit: int, reason: str) -> Points:
    """Sizes at the limit, and what each is refused with."""
    return {
        "L-1": (limit - 1, ""),
        "L": (limit, ""),
        "L+1": (limit + 1, reason),
        "10L": (10 * limit, reason),
    }


def wrong(said: dict[str, str], expected: Points) -> dict[str, str]:
    """What was said otherwise than expected. A group nobody made is no limit."""
    return {
        at: reason
        for at, reason in said.items()
        if (reason if reason != UNKNOWN_GROUP else "") != expected[at][1]
    }


async def answer(
    served: Served, method: str, raw: bytes, namespace: str = "default"
) -> tuple[str, bytes]:
    """The reason of the refusal, "" for none, and the first answer. Streams are left then."""
    descriptor = METHODS[method]
    assert descriptor.containing_service is not None
    path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
    said: dict[str, Any] = {"metadata": (("resultd-namespace", namespace),), "timeout": ANSWER_S}
    channel: Any = served.channel  # of raw bytes, whatever its types say
    try:
        if not descriptor.server_streaming:
            return "", await channel.unary_unary(path)(raw, **said)
        stream: Any
        if descriptor.client_streaming:
            stream = channel.stream_stream(path)(**said)
            with contextlib.suppress(grpc.aio.AioRpcError):  # `read` says why
                await stream.write(raw)
        else:
            stream = channel.unary_stream(path)(raw, **said)
        try:
            first = await stream.read()
        finally:
            stream.cancel()
        assert first is not grpc.aio.EOF
        return "", first
    except grpc.aio.AioRpcError as error:
        refusal = taken_apart(error)
        return refusal.reason or refusal.code, b""


@pytest.fixture(autouse=True)
def _smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is only counted, and costs: the same code counts fewer.

    The figures themselves: `tests/server/service/test_validate.py`, at L and L+1.
    """
    monkeypatch.setattr(limits, "IDS_PER_CALL", 300)
    monkeypatch.setattr(limits, "CHILDREN_MAX", 300)


@pytest.mark.parametrize("method", METHODS)
async def test_the_limit_passes_and_one_more_does_not(method: str) -> None:
    """Every bound of every field of every RPC: L-1 and L pass, L+1 and 10 L are refused by it."""
    found = {}
    async with serving() as served:
        for number, edge in enumerate(edges(method)):
            expected = edge.bound.points()
            said = {
                at: (await answer(served, method, edge.request(size), f"n{number}.{size}"))[0]
                for at, (size, _) in expected.items()
            }
            found[edge.name] = wrong(said, expected)
    assert {name: said for name, said in found.items() if said} == {}


async def test_a_report_in_a_batch_has_the_limits_of_one_alone() -> None:
    """The same four points of a report's fields, each with the outcome of its report."""
    found = {}
    async with serving() as served:
        for edge in edges(STORE):
            expected = edge.bound.points()
            batch = pb.BatchStoreResultsRequest()
            for size, _ in expected.values():
                batch.reports.add().ParseFromString(edge.request(size))
            refused, raw = await answer(served, BATCH, batch.SerializeToString())
            assert refused == ""
            outcomes = pb.BatchStoreResultsResponse.FromString(raw).outcomes
            said = {
                at: error_pb2.ErrorReason.Name(outcome.error.reason).removeprefix("ERROR_REASON_")
                if outcome.HasField("error")
                else ""
                for at, outcome in zip(expected, outcomes, strict=True)
            }
            found[edge.name] = wrong(said, expected)
    assert {name: said for name, said in found.items() if said} == {}


async def test_a_namespace_is_bounded_on_every_rpc() -> None:
    """64 bytes of a namespace pass everywhere, 65 and 640 nowhere."""
    expected = points(limits.NAMESPACE_BYTES_MAX, "FIELD_INVALID")
    async with serving() as served:
        for method, template in TEMPLATES.items():
            raw = template.SerializeToString()
            said = {
                at: (await answer(served, method, raw, "n" * size))[0]
                for at, (size, _) in expected.items()
            }
            assert wrong(said, expected) == {}, method


def _filled(message: Any, payload: value_pb2.Payload, size_bytes: int) -> None:
    """Makes the message so large, by a payload in it."""
    payload.data = b"x"
    room = size_bytes - message.ByteSize()
    payload.data = b"x" * room
    payload.data = b"x" * (room - (message.ByteSize() - size_bytes))
    assert message.ByteSize() == size_bytes


def _report() -> pb.StoreResultRequest:
    value = value_pb2.Payload(data=b"x")
    return pb.StoreResultRequest(
        meta=task_pb2.TaskMeta(task_id="t", state=state_pb2.STATE_SUCCESS, value=value)
    )


def _large_points() -> Points:
    # Ten times a record is more than a request may have: gRPC refuses it, and nobody of ours.
    expected = points(limits.RECORD_BYTES_MAX, LARGE)
    return {**expected, "10L": (expected["10L"][0], "RESOURCE_EXHAUSTED")}


async def test_a_record_is_bounded_as_it_is_read() -> None:
    """Of a record counts what GetResult answers: the report, and what the server adds to it."""
    expected = _large_points()
    said = {}
    # By a clock that stands still, what is added has as many bytes in every record.
    async with serving(clock=lambda: NOON_MS) as served:

        async def stored_bytes(namespace: str) -> int:
            request = pb.GetResultRequest(task_id="t")
            metadata = (("resultd-namespace", namespace),)
            return (await served.results.GetResult(request, metadata=metadata)).meta.ByteSize()

        await served.results.StoreResult(_report())
        added_bytes = await stored_bytes("default") - _report().meta.ByteSize()
        for at, (size, _) in expected.items():
            request, namespace = _report(), f"n{size}"
            _filled(request.meta, request.meta.value, size - added_bytes)
            said[at], _ = await answer(served, STORE, request.SerializeToString(), namespace)
            if not said[at]:
                assert await stored_bytes(namespace) == size
    assert wrong(said, expected) == {}


async def test_what_a_group_carries_is_bounded_together() -> None:
    """Of a group counts what its maker said: claim scope, labels, extra and continuation."""
    expected = _large_points()
    said = {}
    async with serving() as served:
        for at, (size, _) in expected.items():
            group = group_pb2.GroupMeta(claim_scope="s", labels={"a": "b"})
            group.extra["k"].data = b"kept"
            _filled(group, group.continuation, size)
            request = group_service_pb2.CreateGroupRequest(
                group_id="g",
                claim_scope=group.claim_scope,
                labels=group.labels,
                extra=group.extra,
                continuation=group.continuation,
            )
            said[at], _ = await answer(served, CREATE, request.SerializeToString(), f"n{size}")
    assert wrong(said, expected) == {}


@pytest.mark.parametrize("method", [WATCH, WATCH_REVOCATIONS])
async def test_the_ids_of_a_stream_are_bounded(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """So many ids are waited for on one stream, however many messages name them."""
    monkeypatch.setattr(limits, "WATCHED_IDS_PER_STREAM", 20)
    expected = points(limits.WATCHED_IDS_PER_STREAM, LIMIT)
    said = {}
    async with serving() as served:
        for at, (size, _) in expected.items():
            ids = [f"t{number}" for number in range(size)]
            said[at] = await _watched(
                served, method, {"add_task_ids": ids[:10]}, {"add_task_ids": ids[5:]}
            )
    assert wrong(said, expected) == {}


async def test_the_groups_of_a_stream_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many groups are waited for on one stream, however many messages name them."""
    monkeypatch.setattr(limits, "WATCHED_GROUPS_PER_STREAM", 20)
    expected = points(limits.WATCHED_GROUPS_PER_STREAM, LIMIT)
    said = {}
    async with serving() as served:
        for at, (size, _) in expected.items():
            groups = [pb.GroupWatch(group_id=f"g{number}") for number in range(size)]
            said[at] = await _watched(
                served, WATCH, {"add_groups": groups[:10]}, {"add_groups": groups[5:]}
            )
    assert wrong(said, expected) == {}


async def _watched(served: Served, method: str, *messages: dict[str, Any]) -> str:
    """The reason a stream of such messages is refused; "" once the last has been answered."""
    request = type(TEMPLATES[method])
    stub = served.results.Watch if method == WATCH else served.workers.WatchRevocations
    stream: Any = stub(timeout=ANSWER_S)
    try:
        for sequence, fields in enumerate(messages, 1):
            await stream.write(request(sequence=sequence, **fields))
            while (await stream.read()).control.sequence != sequence:
                continue
    except grpc.aio.AioRpcError as error:
        return taken_apart(error).reason
    finally:
        stream.cancel()
    return ""


async def test_the_groups_of_a_member_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task may have so many places in groups, whether declared at once or one by one."""
    monkeypatch.setattr(limits, "GROUPS_PER_MEMBER", 4)
    expected = points(limits.GROUPS_PER_MEMBER, LIMIT)
    at_once, one_by_one = {}, {}
    async with serving() as served:
        for at, (size, _) in expected.items():
            members = [group_pb2.GroupMember(id="t", index=n) for n in range(size)]
            create = group_service_pb2.CreateGroupRequest(group_id="g", members=members)
            raw = create.SerializeToString()
            at_once[at], _ = await answer(served, CREATE, raw, f"once{size}")
            for number in range(size):
                create = group_service_pb2.CreateGroupRequest(
                    group_id=f"g{number}", members=members[:1]
                )
                raw = create.SerializeToString()
                one_by_one[at], _ = await answer(served, CREATE, raw, f"each{size}")
    assert wrong(at_once, expected) == {}
    assert wrong(one_by_one, expected) == {}


async def test_groups_nest_so_deep_and_no_deeper() -> None:
    """A row of L groups, each a member of the next, is taken; one that makes it L+1 is not."""
    expected = points(limits.GROUP_DEPTH_MAX, "GROUP_NESTING")
    said = {}
    async with serving() as served:
        for at, (size, _) in expected.items():
            for level in range(1, size + 1):
                inner = group_pb2.GroupMember(id=f"g{level - 1}", kind=task_pb2.MEMBER_KIND_GROUP)
                create = group_service_pb2.CreateGroupRequest(
                    group_id=f"g{level}", members=[inner] if level > 1 else []
                )
                raw = create.SerializeToString()
                said[at], _ = await answer(served, CREATE, raw, f"n{size}")
                if said[at]:
                    break
    assert wrong(said, expected) == {}


def test_a_traceback_is_cut_beyond_its_limit() -> None:
    """At L-1 and L it is kept whole, at L+1 and 10 L cut to L or a little less, and marked."""
    for at, (size, cut) in points(limits.TRACEBACK_BYTES_MAX, "cut by resultd").items():
        failure = value_pb2.Failure(type="E", traceback="x" * size)
        validate.cut_traceback(failure)
        assert (
            (f"{cut}: {size} bytes" in failure.traceback)
            if cut
            else (len(failure.traceback) == size)
        ), at
        assert len(failure.traceback) <= limits.TRACEBACK_BYTES_MAX


async def test_failures_deeper_than_protobuf_reads_are_malformed() -> None:
    """Ten times the causes that are allowed are no message that anybody can take apart."""
    failure = b""
    for _ in range(10 * limits.CAUSES_MAX):
        failure = wire.message_field(value_pb2.Failure.CAUSE_FIELD_NUMBER, failure)
    meta = wire.message_field(task_pb2.TaskMeta.FAILURE_FIELD_NUMBER, failure)
    async with serving() as served:
        raw = wire.message_field(pb.StoreResultRequest.META_FIELD_NUMBER, meta)
        assert (await answer(served, STORE, raw))[0] == "MALFORMED_MESSAGE"
