"""ResultService: store, read, wait, list, forget."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2
from resultd.v1.group_service_pb2 import CLAIM_OUTCOME_GRANTED
from resultd_server import limits
from resultd_server.core.sources import IterateSource, WaitForSource, WatchSource
from resultd_server.engine.base import Engine, StoreOutcome
from resultd_server.errors import DomainError, FieldInvalid, GroupNotFound, LimitExceeded
from resultd_server.interceptors.errors import code_of
from resultd_server.ledger import wire
from resultd_server.ledger.progress import Cursor
from resultd_server.ledger.records import Report
from resultd_server.ledger.times import set_ms
from resultd_server.service import claimed, traces, validate
from resultd_server.service.registry import Call
from resultd_server.service.streams import Streams

_READ_AT_ONCE = 256
_OUTCOMES = pb.BatchStoreResultsResponse.DESCRIPTOR.fields_by_name["outcomes"].number
_CLAIM = pb.StoreResultResponse.DESCRIPTOR.fields_by_name["claim"].number
_AHEAD = pb.StoreResultResponse.DESCRIPTOR.fields_by_name["members_ahead"].number
_RESULT = pb.StoreOutcome.DESCRIPTOR.fields_by_name["result"].number


class ServerInfo(NamedTuple):
    """Who answers. `quotas`: of a namespace, those that are set."""

    version: str
    features: tuple[str, ...]
    start_ms: int
    quotas: dict[str, int]


class ResultService:
    """Thin: every method validates, asks the engine, and answers."""

    def __init__(self, engine: Engine, streams: Streams, info: ServerInfo) -> None:
        self._engine = engine
        self._streams = streams
        self._info = info

    async def store_result(self, request: pb.StoreResultRequest, call: Call) -> bytes:
        if not request.meta.traceparent:
            traces.adopt(request.meta, call.context)
        report = validate.report(request)
        if report.claim is not None:
            return await self._store_claiming(call.namespace, report, request.claim)
        return await self._store(call.namespace, report)

    async def _store(self, namespace: str, report: Report) -> bytes:
        outcome = (await self._engine.put(namespace, [report]))[0]
        if isinstance(outcome, DomainError):
            raise outcome
        return outcome

    async def _store_claiming(
        self, namespace: str, report: Report, wanted: pb.ClaimOnComplete
    ) -> bytes:
        """The answer to a report with members of its group: with the claim on it, or ahead."""
        outcome = await self._store(namespace, report)
        if not (wanted.with_members or wanted.members_ahead):
            return outcome
        said = pb.StoreResultResponse.FromString(outcome)
        if said.claim.outcome == CLAIM_OUTCOME_GRANTED and wanted.with_members:
            since = claimed.asked_after(wanted)
            pages = await claimed.first_pages(self._engine, namespace, report.group_id, since)
            with_members = claimed.with_members(said.claim, pages)
            said.ClearField("claim")
            return said.SerializeToString() + wire.message_field(_CLAIM, with_members)
        if said.group_done and wanted.members_ahead:
            since = claimed.asked_after(wanted)
            members = await claimed.done_so_far(self._engine, namespace, report.group_id, since)
            if members is not None:
                return outcome + wire.message_field(_AHEAD, members)
        return outcome

    async def batch_store_results(self, request: pb.BatchStoreResultsRequest, call: Call) -> bytes:
        if len(request.reports) > limits.REPORTS_PER_BATCH:
            raise LimitExceeded(
                "reports", len(request.reports), limits.REPORTS_PER_BATCH, "send several batches"
            )
        sound: list[Report] = []
        refused: dict[int, DomainError] = {}
        for number, each in enumerate(request.reports):
            try:
                sound.append(validate.report(each))
            except DomainError as error:
                refused[number] = error
        outcomes = await self._engine.put(call.namespace, sound) if sound else []
        for number, refusal in refused.items():  # in order, so that each gets its place
            outcomes.insert(number, refusal)
        # Most of a batch are answered alike.
        answers = {each: _outcome(each) for each in set(outcomes)}
        parts = [answers[each] for each in outcomes]
        if sum(map(len, parts)) > limits.RESPONSE_BYTES_MAX:
            parts = _within_limit(outcomes, parts)
        return b"".join(parts)

    async def get_result(self, request: pb.GetResultRequest, call: Call) -> bytes:
        task_id = validate.id_("task_id", request.task_id)
        record = (await self._engine.get(call.namespace, (task_id,)))[0]
        return wire.message_field(1, record.wire)

    async def batch_get_results(self, request: pb.BatchGetResultsRequest, call: Call) -> bytes:
        ids = validate.ids("task_ids", request.task_ids, empty=True)
        parts: list[bytes] = []
        # Ids that do not fit are named in the answer: they take room too.
        room = limits.RESPONSE_BYTES_MAX - sum(len(id_.encode()) + 4 for id_ in ids)
        read = 0
        while read < len(ids):
            records = await self._engine.get(
                call.namespace,
                ids[read : read + _READ_AT_ONCE],
                budget_bytes=limits.RESPONSE_BYTES_MAX,
            )
            for record in records:
                part = wire.message_field(1, record.wire)
                if len(part) > room and not parts:
                    raise FieldInvalid(
                        "task_ids", "leave no room for records beside them", "ask for fewer at once"
                    )
                if len(part) > room:
                    return b"".join((*parts, wire.repeated(2, (i.encode() for i in ids[read:]))))
                parts.append(part)
                room -= len(part)
                read += 1
        return b"".join(parts)

    async def wait_for(self, request: pb.WaitForRequest, call: Call) -> None:
        ids = validate.ids("task_ids", request.task_ids)
        validate.known_enum("return_when", request.return_when, pb.ReturnWhen.values())
        validate.known_enum("on_gone", request.on_gone, pb.OnGone.values())
        heartbeat_s = validate.heartbeat_s(request)
        timeout_s = validate.timeout_s(request)
        source = WaitForSource(
            self._engine,
            call.namespace,
            ids,
            return_when=request.return_when,
            transitions=request.transitions,
            wait_for_gone=request.on_gone == pb.ON_GONE_WAIT,
        )
        source.heartbeat_s = heartbeat_s
        await self._streams.run(call, source, timeout_s)

    async def iterate(self, request: pb.IterateRequest, call: Call) -> None:
        group_id = validate.id_("group_id", request.group_id)
        validate.known_enum("order", request.order, pb.MemberOrder.values())
        order = request.order or pb.MEMBER_ORDER_AS_COMPLETED
        cursor = Cursor.decode(request.after, order)
        heartbeat_s = validate.heartbeat_s(request)
        timeout_s = validate.timeout_s(request)
        if request.require_known:
            await self._require_group(call.namespace, group_id)
        source = IterateSource(self._engine, call.namespace, group_id, cursor)
        source.heartbeat_s = heartbeat_s
        await self._streams.run(call, source, timeout_s)

    async def _require_group(self, namespace: str, group_id: str) -> None:
        found = await self._engine.group_get(namespace, group_id, brief=True)
        if found.existence != state_pb2.EXISTENCE_KNOWN:
            raise GroupNotFound(group_id)

    async def watch(self, requests: AsyncIterator[pb.WatchRequest], call: Call) -> None:
        source = WatchSource(self._engine, call.namespace)

        def apply(request: pb.WatchRequest) -> None:
            _check_watch(request)
            heartbeat_s = validate.heartbeat_s(request)
            if not source.begun:
                source.heartbeat_s = heartbeat_s
            source.apply(request)

        await self._streams.run_changing(call, source, requests, apply)

    async def forget_results(
        self, request: pb.ForgetResultsRequest, call: Call
    ) -> pb.ForgetResultsResponse:
        ids = validate.ids("task_ids", request.task_ids, empty=True)
        return pb.ForgetResultsResponse(forgotten=await self._engine.delete(call.namespace, ids))

    async def list_results(self, request: pb.ListResultsRequest, call: Call) -> bytes:
        request.page_size = validate.page_size(request.page_size)
        validate.text("name", request.name)
        if len(request.states) > limits.STATES_PER_CALL:
            raise LimitExceeded(
                "states", len(request.states), limits.STATES_PER_CALL, "name each state once"
            )
        for state in request.states:
            validate.known_enum("states", state, state_pb2.State.values())
        if request.group_id:
            validate.id_("group_id", request.group_id)
        if request.HasField("since"):
            validate.timestamp("since", request.since)
        page = await self._engine.scan(call.namespace, request)
        return wire.page(page.rows, page.next_token)

    async def get_server_info(
        self, request: pb.GetServerInfoRequest, call: Call
    ) -> pb.GetServerInfoResponse:
        answer = pb.GetServerInfoResponse(
            version=self._info.version,
            engine=self._engine.name,
            limits={**limits.advertised(), **self._info.quotas},
            features=self._info.features,
            store_id=self._engine.store_id,
        )
        set_ms(answer.start_time, self._info.start_ms)
        return answer


def _outcome(outcome: StoreOutcome) -> bytes:
    """An outcome as it stands in the answer."""
    if isinstance(outcome, bytes):
        return wire.message_field(_OUTCOMES, wire.message_field(_RESULT, outcome))
    error = pb.ReportError(
        code=code_of(outcome).value[0], reason=outcome.reason, message=outcome.sentence
    )
    said = pb.StoreOutcome(error=error)
    return wire.message_field(_OUTCOMES, said.SerializeToString())


def _within_limit(outcomes: list[StoreOutcome], parts: list[bytes]) -> list[bytes]:
    """The parts of an answer, later ones without groups: what was stored is told in any case."""
    bare = [
        _outcome(_without_groups(each)) if isinstance(each, bytes) else part
        for each, part in zip(outcomes, parts, strict=True)
    ]
    room = limits.RESPONSE_BYTES_MAX - sum(map(len, bare))
    chosen = []
    for part, less in zip(parts, bare, strict=True):
        room -= max(0, len(part) - len(less))
        chosen.append(part if room >= 0 else less)
    return chosen


def _without_groups(outcome: bytes) -> bytes:
    said = pb.StoreResultResponse.FromString(outcome)
    if said.complete_group_ids or said.claimable_group_ids or said.HasField("claim"):
        said.groups_omitted = True
    said.ClearField("claim")
    said.ClearField("complete_group_ids")
    said.ClearField("claimable_group_ids")
    return said.SerializeToString()


def _check_watch(request: pb.WatchRequest) -> None:
    validate.known_enum("on_gone", request.on_gone, pb.OnGone.values())
    validate.ids("add_task_ids", request.add_task_ids, empty=True)
    validate.ids("remove_task_ids", request.remove_task_ids, empty=True)
    validate.ids("remove_group_ids", request.remove_group_ids, empty=True)
    if len(request.add_groups) > limits.WATCHED_GROUPS_PER_MESSAGE:
        raise LimitExceeded(
            "add_groups",
            len(request.add_groups),
            limits.WATCHED_GROUPS_PER_MESSAGE,
            "send several messages",
        )
    for group in request.add_groups:
        validate.id_("add_groups.group_id", group.group_id)
