"""What the client does, written once: calls with their retries, batches, pages.

Every function here is an operation (see `_effects`): the shells of `client` and `aio` drive
them. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message

from resultd import _backoff, _effects, _records
from resultd._deadline import Deadline
from resultd._effects import Call, Effect, Emit, Op, Sleep
from resultd._records import Report, StoreOutcome
from resultd._url import Url
from resultd.errors import (
    InternalError,
    InvalidArgumentError,
    QuotaExceededError,
    ResourceExhaustedError,
    ResultdError,
    SerializationError,
)
from resultd.serialization import Registry
from resultd.v1 import (
    group_pb2,
    group_service_pb2,
    result_service_pb2,
    task_pb2,
    worker_service_pb2,
)

T = TypeVar("T")
_Positioned = tuple[int, result_service_pb2.StoreResultRequest]

IDS_PER_CALL = 10_000
# More to a call are read no faster, and who keeps one record of an answer keeps all of it.
READS_PER_CALL = 1_000
# Seconds between tries, at most, where there is no server.
PATIENCE = 1.0
REPORTS_PER_CALL = 1_000
# Of all lists and maps of a request together: reports, and their children, labels and extra.
ELEMENTS_PER_CALL = 65_536
ELEMENT_BYTES_MIN = 2  # a tag and a length
# The server receives messages of up to 16 MiB; the rest is for what frames them.
CALL_BYTES_MAX = 12 * 1024 * 1024


class RevokeOutcome(NamedTuple):
    """What became of a revocation, by task id."""

    #: REVOKED now: nobody had started them.
    revoked: tuple[str, ...]
    #: A worker has to hear of it and act.
    requested: tuple[str, ...]
    #: Were terminal already.
    terminal: tuple[str, ...]


class Operations:
    """The operations of a client, with what it was configured with."""

    def __init__(self, url: Url, registry: Registry, serializer: str) -> None:
        self.url = url
        self.registry = registry
        self.serializer = serializer

    def call(
        self, method: str, request: Message, *, once: bool = False, limit: float | None = None
    ) -> Op[Any]:
        """Make a call; tries again what may succeed later, until the url's `timeout`.

        `once` is for calls that are not idempotent: those are never sent a second time.
        `limit` makes the time shorter.
        """
        return self._tried(lambda *how: Call(method, request, *how), once, limit)

    def report(
        self, request: result_service_pb2.StoreResultRequest, *, limit: float | None = None
    ) -> Op[result_service_pb2.StoreResultResponse]:
        """Store a report, together with what else the process stores now; tried as a call is."""
        return self._tried(lambda *how: _effects.Report(request, *how), False, limit)

    def _tried(
        self, effect: Callable[[float, bool], Effect], once: bool, limit: float | None
    ) -> Op[Any]:
        timeout = self.url.timeout if limit is None else min(limit, self.url.timeout)
        deadline = Deadline(timeout)
        tries = 0
        away: ResultdError | None = None
        while True:
            try:
                attempt = max(deadline.within(self.url.attempt_timeout), 0.001)
                # From the second time on patiently: the moment there is a server again is
                # the connection's to see, not that of our next try.
                return (yield effect(attempt, tries > 0))
            except ResultdError as error:
                pause = _backoff.full_jitter(tries, error.retry_delay)
                left = deadline.left()
                said = bool(error.reason) or error.retry_delay is not None  # by a server
                late = left is not None and (pause >= left if said else left == 0.0)
                if (once and not error.renewed) or not error.retryable or late:
                    if away is not None and error.code == "DEADLINE_EXCEEDED":
                        raise away from None  # says more than that the time is over
                    raise
                if not said:  # there is none, and a try waits for one by itself
                    pause = min(pause, PATIENCE)
                    if away is None or error.code != "DEADLINE_EXCEEDED":
                        away = error
            tries += 1
            yield Sleep(pause if left is None else min(pause, left))

    def store(self, report: Report) -> Op[StoreOutcome]:
        """Store one report."""
        request = report.request(self.registry, self.serializer)
        return _records.store_outcome((yield from self.report(request)))

    def store_many(self, items: Iterable[Any]) -> Op[list[StoreOutcome]]:
        """Store any number of reports, in their order, each with an outcome of its own."""
        outcomes: list[StoreOutcome] = []
        for batch in _batches(self._encoded(item, outcomes) for item in items):
            stored = yield from self._store_batch([request for _, request in batch])
            for (position, _), outcome in zip(batch, stored, strict=True):
                outcomes[position] = outcome
        return outcomes

    def _encoded(self, item: Any, outcomes: list[StoreOutcome]) -> _Positioned | None:
        """Make room for an outcome and encode the report; one that cannot be is its outcome."""
        outcomes.append(StoreOutcome())
        try:
            request = Report.of(item).request(self.registry, self.serializer)
        except SerializationError as error:
            outcomes[-1] = StoreOutcome(error=error)
            return None
        return len(outcomes) - 1, request

    def _store_batch(
        self, batch: list[result_service_pb2.StoreResultRequest]
    ) -> Op[list[StoreOutcome]]:
        if len(batch) > 1:
            request = result_service_pb2.BatchStoreResultsRequest(reports=batch)
            response = yield from self.call("BatchStoreResults", request)
            return [_batch_outcome(outcome) for outcome in response.outcomes]
        try:  # alone, perhaps because it is so large: it must not spoil the others
            response = yield from self.call("StoreResult", batch[0])
        except (InvalidArgumentError, ResourceExhaustedError) as error:
            # A quota concerns this report; after what else may pass the next fares no better.
            if error.retryable and not isinstance(error, QuotaExceededError):
                raise
            return [StoreOutcome(error=error)]
        return [_records.store_outcome(response)]

    def read(
        self, task_ids: Sequence[str], limit: float | None = None
    ) -> Op[list[task_pb2.TaskMeta]]:
        """Read records, a page at a time; `limit` is for all of them."""
        if len(task_ids) == 1:
            one = result_service_pb2.GetResultRequest(task_id=task_ids[0])
            return [(yield from self.call("GetResult", one, limit=limit)).meta]
        metas: list[task_pb2.TaskMeta] = []
        deadline = Deadline(limit)
        for page in chunks(task_ids, READS_PER_CALL):
            left: Sequence[str] = page
            while left:
                request = result_service_pb2.BatchGetResultsRequest(task_ids=left)
                response = yield from self.call("BatchGetResults", request, limit=deadline.left())
                metas.extend(response.metas)
                if len(response.deferred_task_ids) >= len(left):
                    raise InternalError("the server put off every id it was asked for")
                left = response.deferred_task_ids
        return metas

    def forget(self, task_ids: Iterable[str]) -> Op[int]:
        """Delete records; gives how many there were."""
        forgotten = 0
        for page in chunks(list(task_ids)):
            request = result_service_pb2.ForgetResultsRequest(task_ids=page)
            forgotten += (yield from self.call("ForgetResults", request)).forgotten
        return forgotten

    def revoke(
        self,
        task_ids: Iterable[str],
        terminate: bool,
        signal: object,
        reason: str,
        limit: float | None = None,
    ) -> Op[RevokeOutcome]:
        """Ask that tasks be stopped; `limit` is for all of them."""
        found: tuple[list[str], list[str], list[str]] = ([], [], [])
        deadline = Deadline(limit)
        for page in chunks(list(task_ids)):
            request = worker_service_pb2.RevokeTasksRequest(
                task_ids=page, terminate=terminate, signal=signal_name(signal), reason=reason
            )
            response = yield from self.call("RevokeTasks", request, limit=deadline.left())
            found[0].extend(response.revoked_task_ids)
            found[1].extend(response.requested_task_ids)
            found[2].extend(response.terminal_task_ids)
        return RevokeOutcome(*map(tuple, found))

    def list_results(self, request: result_service_pb2.ListResultsRequest) -> Op[None]:
        """Emit the metas of every record that matches, a page at a time."""
        while True:
            response = yield from self.call("ListResults", request)
            for meta in response.metas:
                yield Emit(_records.meta_dict(meta, self.registry))
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def list_groups(self, request: group_service_pb2.ListGroupsRequest) -> Op[None]:
        """Emit every group that matches, a page at a time."""
        while True:
            response = yield from self.call("ListGroups", request)
            for group in response.groups:
                yield Emit(group)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def group_members(self, group_id: str) -> Op[None]:
        """Emit every member of a group by index, a page at a time."""
        request = group_service_pb2.ListGroupMembersRequest(
            group_id=group_id, page_size=IDS_PER_CALL
        )
        while True:
            response = yield from self.call("ListGroupMembers", request)
            for member in response.members:
                yield Emit(member)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    def group(self, group_id: str) -> Op[group_pb2.GroupMeta]:
        """Read a group; of an unknown one its id and `existence`."""
        request = group_service_pb2.GetGroupRequest(group_id=group_id)
        return (yield from self.call("GetGroup", request)).group  # type: ignore[no-any-return]  # as the RPC says

    def declare_group(
        self,
        request: group_service_pb2.CreateGroupRequest,
        members: Sequence[group_pb2.GroupMember],
        seal: bool,
    ) -> Op[group_pb2.GroupMeta]:
        """Create a group with any number of members that name their index, and seal it."""
        pages = list(chunks(members))
        request.members.extend(pages[0] if pages else ())
        # A new epoch is not idempotent: the same call again would begin yet another.
        group = (yield from self.call("CreateGroup", request, once=request.new_epoch)).group
        for page in pages[1:]:
            group = yield from self.add_members(request.group_id, page)
        if seal:
            group = yield from self.seal(request.group_id, len(members))
        return group  # type: ignore[no-any-return]  # as the RPC says

    def add_members(
        self, group_id: str, members: Sequence[group_pb2.GroupMember]
    ) -> Op[group_pb2.GroupMeta | None]:
        """Add any number of members."""
        group = None
        # Without indexes a repeat would add them again under other indexes.
        once = not all(member.HasField("index") for member in members)
        for page in chunks(members):
            request = group_service_pb2.AddGroupMembersRequest(group_id=group_id, members=page)
            group = (yield from self.call("AddGroupMembers", request, once=once)).group
        return group

    def seal(self, group_id: str, expected_total: int | None) -> Op[group_pb2.GroupMeta]:
        """Say how many members a group will have."""
        request = group_service_pb2.SealGroupRequest(
            group_id=group_id, expected_total=expected_total
        )
        return (yield from self.call("SealGroup", request)).group  # type: ignore[no-any-return]  # as the RPC says

    def delete_group(self, group_id: str) -> Op[bool]:
        """Delete a group, not its members' records; says whether there was one."""
        request = group_service_pb2.DeleteGroupRequest(group_id=group_id)
        return (yield from self.call("DeleteGroup", request)).deleted  # type: ignore[no-any-return]  # as the RPC says


def chunks(items: Sequence[T], size: int = IDS_PER_CALL) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces a call may carry."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def signal_name(signal: object) -> str:
    """Return a signal's name; takes 'TERM', 'SIGTERM', `signal.SIGTERM`, a number, or None."""
    if signal is None:
        return ""
    if isinstance(signal, int):
        import signal as signals

        return signals.Signals(signal).name
    name = str(signal).upper()
    return name if name.startswith("SIG") else f"SIG{name}"


def elements_of(request: result_service_pb2.StoreResultRequest) -> int:
    """Return how many elements a report has in a call's lists and maps, itself one of them."""
    meta = request.meta
    return 1 + len(meta.children) + len(meta.labels) + len(meta.extra)


def _batches(reports: Iterable[_Positioned | None]) -> Iterator[list[_Positioned]]:
    batch: list[_Positioned] = []
    size = elements = 0
    for report in reports:
        if report is None:
            continue
        more = report[1].ByteSize() + 8  # tag and length
        more_elements = elements_of(report[1])
        if batch and (
            len(batch) == REPORTS_PER_CALL
            or size + more > CALL_BYTES_MAX
            or elements + more_elements > ELEMENTS_PER_CALL
        ):
            yield batch
            batch, size, elements = [], 0, 0
        batch.append(report)
        size += more
        elements += more_elements
    if batch:
        yield batch


def _batch_outcome(outcome: result_service_pb2.StoreOutcome) -> StoreOutcome:
    if not outcome.HasField("error"):
        return _records.store_outcome(outcome.result)
    from resultd import _status  # grpc is imported by then; this module is light without it

    return StoreOutcome(error=_status.from_report_error(outcome.error))
