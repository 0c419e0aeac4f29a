"""ResultService over a socket: storing, reading, iterating over groups, watching."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from pydantic import ValidationError

from resultd.v1 import group_pb2, group_service_pb2, state_pb2, stream_pb2, value_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server import limits
from resultd_server.config import NUMBER_MAX, Settings
from tests.support import reports
from tests.support.frames import END, RESET, SYNCED, Frames, control, ids
from tests.support.in_process import Served, serving
from tests.support.refusals import taken_apart

COMPLETE = stream_pb2.END_REASON_COMPLETE
GONE = stream_pb2.END_REASON_GONE
KNOWN = state_pb2.EXISTENCE_KNOWN
AS_COMPLETED = pb.MEMBER_ORDER_AS_COMPLETED
MEMBER = pb.MEMBER_ORDER_MEMBER
GRANTED = group_service_pb2.CLAIM_OUTCOME_GRANTED


async def store(served: Served, *requests: pb.StoreResultRequest) -> list[pb.StoreOutcome]:
    """Reports, in one batch; their outcomes."""
    answer = await served.results.BatchStoreResults(reports.batch(requests))
    return list(answer.outcomes)


async def create(served: Served, group_id: str, *task_ids: str, **how: Any) -> group_pb2.GroupMeta:
    """A group."""
    members = [group_pb2.GroupMember(id=task_id) for task_id in task_ids]
    request = group_service_pb2.CreateGroupRequest(group_id=group_id, members=members, **how)
    return (await served.groups.CreateGroup(request)).group


def iterate(served: Served, group_id: str, **how: Any) -> Frames:
    """An Iterate."""
    return Frames(served.results.Iterate(pb.IterateRequest(group_id=group_id, **how)))


async def watch(served: Served, **said: Any) -> Frames:
    """A Watch, with its first request."""
    frames = Frames(served.results.Watch())
    await frames.call.write(pb.WatchRequest(**said))
    return frames


# Storing and reading.


async def test_a_batch_whose_answer_would_be_too_large_omits_groups_and_says_so(
    served: Served,
) -> None:
    """Every outcome is told; groups of as many as there is room for, of none in part."""
    tasks = [f"t{number}" for number in range(240)]
    groups = [
        f"{number:0{limits.ID_BYTES_MAX}}" for number in range(limits.COMPLETE_GROUPS_PER_ANSWER)
    ]
    for group_id in groups:
        await create(served, group_id, *tasks, seal=True, claim_scope="s")
    requests = [reports.success(task_id) for task_id in tasks]
    await store(served, *requests)
    for request in requests:
        request.claim_scope = "s"
    again = [*requests, reports.success("")]
    answer = await served.results.BatchStoreResults(reports.batch(again))
    *outcomes, refused = answer.outcomes
    assert answer.ByteSize() <= limits.RESPONSE_BYTES_MAX
    assert refused.error.reason
    said = [each.result for each in outcomes]
    assert [each.disposition for each in said] == [pb.DISPOSITION_DUPLICATE] * len(tasks)
    omitted = [each.groups_omitted for each in said]
    some = omitted.count(False)
    assert omitted == [False] * some + [True] * (len(tasks) - some)
    for each in said[:some]:
        assert list(each.complete_group_ids) == groups
        assert len(each.claimable_group_ids) == limits.CLAIMABLE_PER_ANSWER
    assert not any(each.complete_group_ids or each.claimable_group_ids for each in said[some:])
    assert answer.ByteSize() + said[0].ByteSize() > limits.RESPONSE_BYTES_MAX
    alone = await served.results.StoreResult(requests[-1])
    assert (list(alone.complete_group_ids), alone.groups_omitted) == (groups, False)


async def test_claims_of_a_batch_come_without_members(served: Served) -> None:
    """Each for itself, with its group; members are for who asks alone."""
    for name in ("g", "h"):
        await create(served, name, f"of {name}", seal=True)
    requests = [reports.success(f"of {name}", group_id=name) for name in ("g", "h")]
    for request in requests:
        request.claim.token, request.claim.with_members = f"for {request.meta.group_id}", True
    for _ in range(2):
        claims = [outcome.result.claim for outcome in await store(served, *requests)]
        assert [claim.outcome for claim in claims] == [GRANTED, GRANTED]
        assert [claim.group.group_id for claim in claims] == ["g", "h"]
        assert not any(claim.HasField("members") for claim in claims)
    alone = await served.results.StoreResult(requests[0])
    assert [event.task.task_id for event in alone.claim.members.events] == ["of g"]


async def test_a_claim_that_has_no_room_in_a_batch_is_had_by_asking_again(served: Served) -> None:
    """What was granted is not told in part: the report says so, and its repeat has the claim."""
    body = value_pb2.Payload(data=b"x" * (limits.RECORD_BYTES_MAX // 2))
    requests = [reports.success(f"of {name}", group_id=name) for name in ("g", "h", "i")]
    for request in requests:
        await create(
            served, request.meta.group_id, request.meta.task_id, seal=True, continuation=body
        )
        request.claim.token = request.meta.group_id
    said = [outcome.result for outcome in await store(served, *requests)]
    assert [each.groups_omitted for each in said] == [False, False, True]
    assert [each.HasField("claim") for each in said] == [True, True, False]
    again = await served.results.StoreResult(requests[2])
    assert (again.claim.outcome, again.claim.first) == (GRANTED, True)
    assert again.claim.group.continuation == body


async def test_a_claim_on_no_group_is_refused(served: Served) -> None:
    """A report that asks for one names its group."""
    request = reports.success("t")
    request.claim.token = "me"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.results.StoreResult(request)
    refusal = taken_apart(caught.value)
    assert (refusal.reason, refusal.facts["field"]) == ("FIELD_INVALID", "claim")
    got = await served.results.GetResult(pb.GetResultRequest(task_id="t"))
    assert got.meta.existence == state_pb2.EXISTENCE_UNKNOWN


async def test_a_report_is_applied_once(served: Served) -> None:
    """A report is APPLIED, its repeat a DUPLICATE, an older state SUPERSEDED."""
    requests = [reports.success("t")] * 2 + [reports.state("t", state_pb2.STATE_STARTED)]
    said = [await served.results.StoreResult(request) for request in requests]
    assert [answer.disposition for answer in said] == [
        pb.DISPOSITION_APPLIED,
        pb.DISPOSITION_DUPLICATE,
        pb.DISPOSITION_SUPERSEDED,
    ]
    assert {(answer.state, answer.version) for answer in said} == {(state_pb2.STATE_SUCCESS, 1)}


@pytest.mark.parametrize(
    ("index", "membership"), [(None, pb.MEMBERSHIP_SEALED), (0, pb.MEMBERSHIP_INDEX_TAKEN)]
)
async def test_a_membership_problem_does_not_throw_a_result_away(
    served: Served, index: int | None, membership: pb.Membership.ValueType
) -> None:
    """A report that names a sealed group or a taken index is stored, and says so."""
    await create(served, "g", "member", seal=True)
    request = reports.success("stranger", group_id="g")
    if index is not None:
        request.meta.index = index
    [outcome] = await store(served, request)
    assert outcome.result.disposition == pb.DISPOSITION_APPLIED
    assert outcome.result.membership == membership
    got = await served.results.GetResult(pb.GetResultRequest(task_id="stranger"))
    assert got.meta.existence == KNOWN
    group = await served.groups.GetGroup(group_service_pb2.GetGroupRequest(group_id="g"))
    assert (group.group.counts.members, group.group.counts.done) == (1, 0)


async def test_an_unknown_task_is_not_an_error(served: Served) -> None:
    """Who asks for an unknown id gets OK, PENDING and UNKNOWN; of a forgotten one FORGOTTEN."""
    await store(served, reports.success("f"))
    await served.results.ForgetResults(pb.ForgetResultsRequest(task_ids=["f"]))
    request = pb.BatchGetResultsRequest(task_ids=["u", "f"])
    unknown, forgotten = (await served.results.BatchGetResults(request)).metas
    assert (unknown.task_id, unknown.state) == ("u", state_pb2.STATE_PENDING)
    assert unknown.existence == state_pb2.EXISTENCE_UNKNOWN
    assert forgotten.existence == state_pb2.EXISTENCE_FORGOTTEN


async def test_a_batch_read_answers_what_fits_and_names_the_rest(served: Served) -> None:
    """Asked again for what was deferred, a client gets every record once, 4 MiB at a time."""
    task_ids = [f"t{n}" for n in range(20)]
    for task_id in task_ids:
        await store(served, reports.success(task_id, b"x" * 700_000))
    left, got, calls = task_ids, [], 0
    while left:
        answer = await served.results.BatchGetResults(pb.BatchGetResultsRequest(task_ids=left))
        assert answer.ByteSize() <= limits.RESPONSE_BYTES_MAX
        got += [meta.task_id for meta in answer.metas]
        left, calls = list(answer.deferred_task_ids), calls + 1
    assert (got, calls) == (task_ids, 4)


async def test_ids_that_leave_no_room_for_a_record_are_refused(served: Served) -> None:
    """Ids so long that their names and the first record exceed an answer: ask for fewer."""
    await store(served, reports.success("a", b"x" * 3_000_000))
    task_ids = ["a", *(f"{n:0255}" for n in range(9_000))]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.results.BatchGetResults(pb.BatchGetResultsRequest(task_ids=task_ids))
    assert taken_apart(caught.value).reason == "FIELD_INVALID"


async def test_pages_of_records_are_complete_and_filtered(served: Served) -> None:
    """Page by page every record comes once, and only those that the filter names."""
    await create(served, "g", "t0", "t1")
    requests = [reports.success(f"t{n}") for n in range(7)] + [reports.failure("f")]
    requests[3].meta.name = "proj.add"
    await store(served, *requests)

    async def listed(**wanted: Any) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            request = pb.ListResultsRequest(page_size=2, page_token=token, **wanted)
            page = await served.results.ListResults(request)
            assert len(page.metas) <= 2
            found += [meta.task_id for meta in page.metas]
            if not (token := page.next_page_token):
                return found

    assert await listed() == ["f", *(f"t{n}" for n in range(7))]
    assert await listed(states=[state_pb2.STATE_FAILURE]) == ["f"]
    assert await listed(name="proj.add") == ["t3"]
    assert await listed(group_id="g") == ["t0", "t1"]


async def test_server_info_names_what_there_is(served: Served) -> None:
    """GetServerInfo names version, engine, store, limits and features."""
    info = await served.results.GetServerInfo(pb.GetServerInfoRequest())
    assert (info.engine, info.store_id) == ("memory", served.app.engine.store_id)
    assert info.limits["ids_per_call"] == 10_000
    assert "watch" in info.features
    assert info.version
    assert info.start_time.seconds > 1_700_000_000


async def test_server_info_has_room_for_each_quota() -> None:
    """The largest that the settings take can be told, and one more is no setting."""
    names = [f"{what}_per_namespace" for what in ("streams", "waited_ids", "records", "bytes")]
    largest: dict[str, Any] = dict.fromkeys(names, NUMBER_MAX)
    async with serving(**largest) as served:
        info = await served.results.GetServerInfo(pb.GetServerInfoRequest())
        assert {info.limits[name] for name in names} == {NUMBER_MAX}
    for name in names:
        with pytest.raises(ValidationError, match="less than or equal"):
            Settings.model_validate({"engine": "memory", name: NUMBER_MAX + 1})


async def test_namespaces_do_not_see_one_another(served: Served) -> None:
    """The same id in two namespaces is two tasks, for readers and for waiters."""
    there = (("resultd-namespace", "other"),)
    wait = Frames(served.results.WaitFor(pb.WaitForRequest(task_ids=["t"]), metadata=there))
    await wait.until(SYNCED)
    await store(served, reports.success("t", b"1"))
    await served.results.StoreResult(reports.success("t", b"2"), metadata=there)
    [event] = (await wait.next()).events
    assert event.task.value.data == b"2"


# Iterate.


async def test_members_come_as_they_complete_with_the_groups_numbers(served: Served) -> None:
    """Every frame of an Iterate carries events in completion order, counts, and `after`."""
    await create(served, "g", "a", "b", "c", seal=True)
    await store(served, reports.success("b"))
    stream = iterate(served, "g")
    first = await stream.until(SYNCED)
    assert ids(first) == ["b"]
    assert first[0].events[0].index == 1
    await store(served, reports.failure("a"), reports.success("c"))
    rest = await stream.rest()
    assert ids(rest) == ["a", "c"]
    assert [event.position for frame in rest for event in frame.events] == [2, 3]
    assert control(rest[-1]) == (END, COMPLETE)
    for frame in [*first, *rest]:
        assert frame.counts.members == 3
        assert frame.after
    assert (rest[-1].counts.succeeded, rest[-1].counts.failed) == (2, 1)


async def test_member_order_stops_at_the_lowest_that_is_not_done(served: Served) -> None:
    """In member order nobody comes before the members of lower index have come."""
    await create(served, "g", "a", "b", "c", seal=True)
    await store(served, reports.success("b"), reports.success("c"))
    stream = iterate(served, "g", order=MEMBER)
    assert ids(await stream.until(SYNCED)) == []
    await store(served, reports.success("a"))
    assert ids(await stream.rest()) == ["a", "b", "c"]


@pytest.mark.parametrize("order", [AS_COMPLETED, MEMBER])
async def test_a_stream_resumes_after_any_frame(
    served: Served, order: pb.MemberOrder.ValueType
) -> None:
    """Resumed with the `after` of any of its frames, a stream goes on with the next member."""
    task_ids = [f"t{n:04}" for n in range(1_000)]
    await create(served, "g", *task_ids, seal=True)
    await store(served, *(reports.success(task_id) for task_id in task_ids))
    whole = await iterate(served, "g", order=order).rest()
    assert ids(whole) == task_ids
    assert len(whole) >= 5
    seen = 0
    for frame in whole:
        seen += len(frame.events)
        again = await iterate(served, "g", order=order, after=frame.after).rest()
        assert ids(again) == task_ids[seen:]
        assert RESET not in [each.control.kind for each in again]


@pytest.mark.parametrize("order", [AS_COMPLETED, MEMBER])
@pytest.mark.parametrize("open_then", [True, False])
async def test_a_new_run_of_the_group_resets_its_streams(
    served: Served, order: pb.MemberOrder.ValueType, open_then: bool
) -> None:
    """After new_epoch a stream, open or resumed, says RESET and starts from the beginning."""
    await create(served, "g", "a", "b")
    await store(served, reports.success("a"))
    stream = iterate(served, "g", order=order)
    before = await stream.until(SYNCED)
    await create(served, "g", "c", seal=True, new_epoch=True)
    if not open_then:
        stream.call.cancel()
        stream = iterate(served, "g", order=order, after=before[-1].after)
    after = await stream.until(RESET)
    assert ids(after) == []
    await store(served, reports.success("c"))
    rest = await stream.rest()
    assert ids(rest) == ["c"]
    assert rest[-1].counts.epoch == 2


async def test_an_unknown_group_is_waited_for_unless_it_must_be_known(served: Served) -> None:
    """A stream on a group nobody has declared begins when somebody does."""
    stream = iterate(served, "g")
    await stream.until(SYNCED)
    await create(served, "g", "a", seal=True)
    await store(served, reports.success("a"))
    assert ids(await stream.rest()) == ["a"]
    assert ids(await iterate(served, "g", require_known=True).rest()) == ["a"]


async def test_a_deleted_group_ends_its_streams_with_gone(served: Served) -> None:
    """Streams on a group that is deleted, or was, end with GONE."""
    await create(served, "g", "a")
    stream = iterate(served, "g")
    await stream.until(SYNCED)
    await served.groups.DeleteGroup(group_service_pb2.DeleteGroupRequest(group_id="g"))
    assert control((await stream.rest())[-1]) == (END, GONE)
    assert control((await iterate(served, "g").rest())[-1]) == (END, GONE)


async def test_an_empty_group_is_complete_once_it_is_sealed(served: Served) -> None:
    """A sealed group without members is complete at once."""
    await create(served, "g", seal=True)
    assert control((await iterate(served, "g").rest())[-1]) == (END, COMPLETE)


# Watch.


async def test_a_watch_answers_each_request_once_what_counted_is_sent(served: Served) -> None:
    """SYNCED with the request's number follows what counted already; 0 is not answered."""
    await store(served, reports.success("a"), reports.success("b"))
    stream = await watch(served, add_task_ids=["a"], sequence=7)
    frames = await stream.until(SYNCED)
    assert ids(frames) == ["a"]
    assert frames[-1].control.sequence == 7
    await stream.call.write(pb.WatchRequest(add_task_ids=["b"]))
    await stream.call.write(pb.WatchRequest(sequence=8))
    frames = await stream.until(SYNCED)
    assert ids(frames) == ["b"]
    assert frames[-1].control.sequence == 8


async def test_what_is_removed_from_a_watch_is_told_no_more(served: Served) -> None:
    """Ids and groups that were removed send nothing; they can be added again."""
    await create(served, "g", "a")
    stream = await watch(
        served, add_task_ids=["a", "b"], add_groups=[pb.GroupWatch(group_id="g")], sequence=1
    )
    await stream.until(SYNCED)
    await stream.call.write(
        pb.WatchRequest(remove_task_ids=["a"], remove_group_ids=["g", "never"], sequence=2)
    )
    await stream.until(SYNCED)
    await store(served, reports.success("a"), reports.success("b"))
    assert ids([await stream.next()]) == ["b"]
    assert served.waiting() == (1, 1, 0)
    await stream.call.write(
        pb.WatchRequest(add_task_ids=["a"], add_groups=[pb.GroupWatch(group_id="g")], sequence=3)
    )
    frames = await stream.until(SYNCED)
    assert ids(frames) == ["a", "a"]
    assert [frame.group_id for frame in frames] == ["", "g", ""]
    assert frames[1].counts.done == 1


async def test_a_groups_wait_ends_inside_a_watch(served: Served) -> None:
    """A complete group ends with an END that names it, a deleted one GONE; the stream goes on."""
    await create(served, "done", "a", seal=True)
    await create(served, "lost", "b")
    await store(served, reports.success("a"))
    groups = [pb.GroupWatch(group_id=group_id) for group_id in ("done", "lost")]
    stream = await watch(served, add_groups=groups, sequence=1)
    frames = await stream.until(SYNCED)
    ends = [frame for frame in frames if frame.control.kind == END]
    assert [(f.group_id, f.control.group_id, f.control.end_reason) for f in ends] == [
        ("done", "done", COMPLETE)
    ]
    await served.groups.DeleteGroup(group_service_pb2.DeleteGroupRequest(group_id="lost"))
    lost = await stream.next()
    assert (lost.group_id, lost.control.end_reason) == ("lost", GONE)
    await stream.call.write(pb.WatchRequest(add_task_ids=["a"]))
    assert ids([await stream.next()]) == ["a"]


async def test_a_watch_resumes_a_group_and_says_reset(served: Served) -> None:
    """A group's `after` resumes it inside a Watch; a new run of it is a RESET that names it."""
    await create(served, "g", "a", "b")
    await store(served, reports.success("a"))
    stream = await watch(served, add_groups=[pb.GroupWatch(group_id="g")], sequence=1)
    after = (await stream.until(SYNCED))[0].after
    stream.call.cancel()
    await store(served, reports.success("b"))
    stream = await watch(served, add_groups=[pb.GroupWatch(group_id="g", after=after)])
    assert ids([await stream.next()]) == ["b"]
    await create(served, "g", "c", new_epoch=True)
    reset = await stream.next()
    assert control(reset)[0] == RESET
    assert reset.control.group_id == "g"
    await store(served, reports.success("c"))
    assert ids([await stream.next()]) == ["c"]


async def test_a_large_group_does_not_hold_up_the_others(served: Served) -> None:
    """Groups of one Watch take turns: a small one need not wait for a large one's end."""
    large = [f"t{n}" for n in range(1_000)]
    await create(served, "large", *large, seal=True)
    await create(served, "small", "t0", seal=True)
    await store(served, *(reports.success(task_id) for task_id in large))
    groups = [pb.GroupWatch(group_id=group_id) for group_id in ("large", "small")]
    stream = await watch(served, add_groups=groups, sequence=1)
    frames = await stream.until(SYNCED)
    assert [frame.group_id for frame in frames].index("small") < 3
    assert len(ids(frames)) == 1_001


async def test_the_first_request_says_how(served: Served) -> None:
    """`transitions` and `on_gone` count in the first request of a Watch, and only there."""
    await store(served, reports.state("t", state_pb2.STATE_STARTED), reports.success("f"))
    await served.results.ForgetResults(pb.ForgetResultsRequest(task_ids=["f"]))
    first = await watch(
        served, add_task_ids=["t", "f"], transitions=True, on_gone=pb.ON_GONE_WAIT, sequence=1
    )
    assert ids(await first.until(SYNCED)) == ["t"]
    later = await watch(served, sequence=1)
    await later.until(SYNCED)
    await later.call.write(
        pb.WatchRequest(
            add_task_ids=["t", "f"], transitions=True, on_gone=pb.ON_GONE_WAIT, sequence=2
        )
    )
    assert ids(await later.until(SYNCED)) == ["f"]


async def test_a_half_closed_watch_ends_when_nothing_is_pending(served: Served) -> None:
    """After the client's half-close a Watch goes on until all it waits for is told, then ends."""
    stream = await watch(served, add_task_ids=["a"], sequence=1)
    await stream.until(SYNCED)
    await stream.call.done_writing()
    await store(served, reports.success("a"))
    rest = await stream.rest()
    assert ids(rest) == ["a"]
    assert control(rest[-1]) == (END, COMPLETE)
    empty = Frames(served.results.Watch())
    await empty.call.done_writing()
    assert control((await empty.rest())[-1]) == (END, COMPLETE)
    await served.idle()


async def test_many_requests_at_once_are_all_answered_in_order(served: Served) -> None:
    """A client that asks faster than it reads is answered every time, in order."""
    stream = Frames(served.results.Watch())
    for number in range(1, 501):
        await stream.call.write(pb.WatchRequest(add_task_ids=[f"t{number}"], sequence=number))
    answered = [(await stream.next()).control.sequence for _ in range(500)]
    assert answered == list(range(1, 501))


async def test_a_watch_holds_at_most_100_000_ids(served: Served) -> None:
    """The 100,001st id of one stream is refused, repeats not counted; the stream is freed."""
    stream = Frames(served.results.Watch())
    for start in range(0, 100_000, 10_000):
        task_ids = [f"t{n}" for n in range(start, start + 10_000)]
        await stream.call.write(pb.WatchRequest(add_task_ids=task_ids))
    await stream.call.write(pb.WatchRequest(add_task_ids=["t5"], sequence=1))
    await stream.until(SYNCED)
    assert served.waiting() == (1, 1, 100_000)
    await stream.call.write(pb.WatchRequest(add_task_ids=["one more"]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.next()
    refusal = taken_apart(caught.value)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "LIMIT_EXCEEDED")
    await served.idle()


async def test_a_bad_request_ends_a_watch_that_is_not_read(served: Served) -> None:
    """A refused request ends the stream with its status, even if frames were being written."""
    task_ids = [f"big{n}" for n in range(20)]
    for task_id in task_ids:
        await store(served, reports.success(task_id, b"x" * 2**20))
    stream = await watch(served, add_task_ids=task_ids)
    await stream.next()
    await stream.call.write(pb.WatchRequest(add_task_ids=[""]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.rest()
    assert taken_apart(caught.value).reason == "FIELD_INVALID"
    await served.idle()
