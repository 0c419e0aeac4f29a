"""Chords, on the server's own counting of groups.

Each part is its task's own report, which names the chord's group and the part's index; the
server counts it once, whoever repeats it. Whoever hears that the group is complete claims it,
publishes the body with all parts in order, and says that it is done. Should it die in between,
its lease runs out and any worker of the app takes over: the body lies with the group.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import states
from celery.app.task import Context
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult
from kombu.exceptions import EncodeError, OperationalError
from kombu.serialization import dumps, loads, prepare_accept_content

from resultd import _records
from resultd._effects import Op
from resultd.celery._records import ttl_fields
from resultd.errors import (
    FailedPreconditionError,
    GroupConflictError,
    GroupNotFoundError,
    GroupSealedError,
    GroupTotalMismatchError,
    ResultdError,
)
from resultd.v1 import (
    group_pb2,
    group_service_pb2,
    result_service_pb2,
    state_pb2,
    task_pb2,
    value_pb2,
)

if TYPE_CHECKING:
    from resultd.celery.backend import ResultdBackend

logger = logging.getLogger("resultd.celery")

#: The header's shape, where it holds groups: the body gets lists in lists.
HEADER = "celery.header"

# Parts that share a group index (a task that add_to_chord() added has that of the one that
# added it) stand in lanes: index = lane * LANE + group index. Sorted by both, they stand side
# by side.
LANE = 1 << 24
LANES = 127
# Seconds a complete chord is left to whoever returned its last part. One whose claimant let
# its lease run out needs no more of them.
GRACE = 5.0
NOTICED_MAX = 64
# Pages of unfinished chords that one question asks for at most; the next one goes on there.
PAGES_MAX = 4
# What only a worker says of a task: whoever reads it of a body knows that it was published.
_AT_WORK = (state_pb2.STATE_STARTED, state_pb2.STATE_RETRY)

_GRANTED = group_service_pb2.CLAIM_OUTCOME_GRANTED
_ACQUIRE = group_service_pb2.CLAIM_ACTION_ACQUIRE
_DONE = group_service_pb2.CLAIM_ACTION_DONE
_RELEASE = group_service_pb2.CLAIM_ACTION_RELEASE


class Chords:
    """The chords of one backend's app."""

    def __init__(self, backend: ResultdBackend) -> None:
        self._backend = backend
        self._returning = _Returning()
        # When each was first named, the least recently named first.
        self._noticed: dict[str, float] = {}
        self._page_token = ""

    # Publishing

    def declare(self, group_id: str, results: Any, body: Any) -> None:
        """Declare a chord's group; one of that name that is over begins a new epoch."""
        request = group_service_pb2.CreateGroupRequest(
            group_id=group_id,
            claim_scope=self._backend.options.claim_scope,
            **ttl_fields(self._backend.chord_expires),
        )
        continuation = self._encoded(body)
        if continuation is not None:
            request.continuation.CopyFrom(continuation)
        # A generator is left alone, to be drawn from while its tasks are published.
        if isinstance(results, (list, tuple)) and any(isinstance(r, GroupResult) for r in results):
            header = self._backend.app.GroupResult(group_id, list(results))
            payload = self._backend.codec.encode(header.as_tuple(), squeeze=True)
            request.extra[HEADER].CopyFrom(payload)
        try:
            group = self._call("CreateGroup", request).group
        except GroupConflictError:  # it was sealed with another body
            over = True
        else:
            over = group.counts.complete
        if over:
            # The frozen chord is applied again. A repeat of this call does no harm: no part
            # of the new run has been published yet.
            request.new_epoch = True
            self._call("CreateGroup", request)

    def _encoded(self, body: Any) -> value_pb2.Payload | None:
        app = self._backend.app
        try:
            content_type, _, data = dumps(dict(body), serializer=app.conf.task_serializer)
        except EncodeError:
            logger.warning(
                "the body of a chord cannot be written as %s and is not stored with its group: "
                "should the worker that is to publish it die, no other can",
                app.conf.task_serializer,
            )
            return None
        raw = data.encode() if isinstance(data, str) else bytes(data)
        return value_pb2.Payload(content_type=content_type, data=raw)

    def set_size(self, group_id: str, size: int) -> None:
        """Say how many parts a chord has."""
        request = group_service_pb2.SealGroupRequest(group_id=group_id, expected_total=size)
        try:
            group = self._call("SealGroup", request).group
        except GroupNotFoundError:
            self._call("CreateGroup", self._bare(group_id))
            group = self._call("SealGroup", request).group
        except GroupTotalMismatchError as error:
            # A group inside the header's chain is applied by a worker and announces its own
            # tasks only; the header's size, announced first, counts them already.
            logger.debug("chord %s keeps the size it was announced with: %s", group_id, error)
            return
        if group.counts.complete:  # all parts were back before
            self._finish_or_leave(group_id)

    def _bare(self, group_id: str) -> group_service_pb2.CreateGroupRequest:
        return group_service_pb2.CreateGroupRequest(
            group_id=group_id, **ttl_fields(self._backend.chord_expires)
        )

    def add(self, group_id: str, task_id: str) -> None:
        """Expect one more part."""
        request = group_service_pb2.AddToTotalRequest(
            group_id=group_id, delta=1, request_id=task_id
        )
        try:
            self._call("AddToTotal", request)
        except GroupNotFoundError:
            self._call("CreateGroup", self._bare(group_id))
            self._call("AddToTotal", request)
        except GroupSealedError:
            logger.warning("chord %s is complete: task %s comes too late", group_id, task_id)

    # Returning parts

    @contextlib.contextmanager
    def returning(self) -> Iterator[None]:
        """Let results stored inside count as their tasks' parts: they are final."""
        self._returning.depth += 1
        try:
            yield
        finally:
            self._returning.depth -= 1

    def join_in(self, store: result_service_pb2.StoreResultRequest, request: Any) -> bool:
        """Make a result that is being stored its chord's part, if it is one."""
        if not self._returning.depth or not getattr(request, "chord", None):
            return False
        if request.id != store.meta.task_id or not request.group:
            return False
        _place(store.meta, request)
        return True

    def joined(
        self,
        store: result_service_pb2.StoreResultRequest,
        answer: result_service_pb2.StoreResultResponse,
    ) -> None:
        """Keep what the server said to a part, for `part_returned` in this thread."""
        answer = self._find_place(store, answer)
        self._returning.answers[store.meta.task_id, store.meta.group_id] = answer

    def part_returned(self, request: Any, state: str, result: Any) -> None:
        """Count a part, unless storing its result did; finish the chord if it is complete."""
        task_id, group_id = request.id, request.group
        if not task_id or not group_id:
            return
        answer = self._returning.answers.pop((task_id, group_id), None)
        if answer is None:
            store = self._backend.part(task_id, result, state, request)
            _place(store.meta, request)
            answer = self._find_place(store, self._backend.send(store))
        if group_id in answer.complete_group_ids:
            self._finish_or_leave(group_id, request.chord)

    def _find_place(
        self,
        store: result_service_pb2.StoreResultRequest,
        answer: result_service_pb2.StoreResultResponse,
    ) -> result_service_pb2.StoreResultResponse:
        lane = 0
        while answer.membership == result_service_pb2.MEMBERSHIP_INDEX_TAKEN and lane < LANES:
            lane += 1
            store.meta.index += LANE
            answer = self._backend.send(store)
        if answer.membership in (
            result_service_pb2.MEMBERSHIP_SEALED,
            result_service_pb2.MEMBERSHIP_NOT_A_MEMBER,
        ):
            logger.warning(
                "task %s is no part of chord %s (any more): %s",
                store.meta.task_id,
                store.meta.group_id,
                _records.enum_name(result_service_pb2.Membership, answer.membership),
            )
        return answer

    # Finishing

    def _finish_or_leave(self, group_id: str, callback: Any = None) -> None:
        """Finish a chord; leave it to others if the server or the broker went away meanwhile."""
        try:
            self.finish(group_id, callback)
        except ResultdError as error:
            if not error.retryable:
                raise
            logger.exception(
                "chord %s is complete, but the server went away before its body was published: "
                "another worker will do that",
                group_id,
            )
        except _BrokerAwayError as error:
            logger.warning(
                "chord %s is complete, but its body cannot be published now, which is tried "
                "again later: %s",
                group_id,
                error,
            )

    def finish(self, group_id: str, callback: Any = None) -> bool:
        """Publish a complete chord's body, unless somebody else does; whether it was done here.

        Without `callback` the body that lies with the group is taken.
        """
        claim = _Claim(self, group_id)
        group = claim.acquire()
        if group is None:
            return False
        try:
            body = maybe_signature(callback or self._continuation(group), app=self._backend.app)
            if body is None:
                logger.error("chord %s is complete, and nobody knows its body", group_id)
                return False
            members = self._members(group_id)
            published = self._publish(group, members, body, claim)
        except (ResultdError, _BrokerAwayError):
            # Not known what is stored, or sent: somebody has to try again.
            claim.release()
            raise
        if published and claim.done():
            self._forget_ignored(group, members)
        return published

    def _continuation(self, group: group_pb2.GroupMeta) -> Any:
        payload = group.continuation
        if not payload.data:
            return None
        # What a worker of this app would accept as a task's message, and no more.
        accept = prepare_accept_content(self._backend.app.conf.accept_content)
        return loads(payload.data, payload.content_type, "utf-8", accept=accept)

    def _members(self, group_id: str) -> list[group_pb2.GroupMember]:
        """Give the chord's parts in the order of the header."""
        client = self._backend.client
        members: list[group_pb2.GroupMember] = list(
            client.iterate(client.operations.group_members(group_id))
        )
        return sorted(members, key=lambda member: (member.index % LANE, member.index))

    def _publish(
        self,
        group: group_pb2.GroupMeta,
        members: list[group_pb2.GroupMember],
        body: Any,
        claim: _Claim,
    ) -> bool:
        """Publish the body with all parts, or fail it; False if the claim was lost over it."""
        group_id = group.group_id
        error: ChordError | None = None
        values: list[Any] = []
        try:
            records = self._records(group, members, body)
            if _was_published(body, records, group):
                logger.info("the body of chord %s was published by another before", group_id)
                return True
            values = self._values(group, [member.id for member in members], records)
        except ChordError as found:
            error = found
            logger.error("chord %s: %s", group_id, error)
        except ResultdError:
            raise
        except Exception as found:  # what a value's own decoder raises
            error = _chord_error(f"Join error: {found!r}", found)
            logger.exception("chord %s: its parts cannot be read", group_id)
        if not claim.holds():
            logger.warning("chord %s: its parts took too long, another worker has it", group_id)
            return False
        if error is None:
            error = self._send(group_id, body, values)
        if error is not None:
            self._fail(body, error)
        return True

    def _send(self, group_id: str, body: Any, values: list[Any]) -> ChordError | None:
        """Publish; gives what the body is to fail of if it can never be.

        Raises:
            _BrokerAwayError: not now; perhaps later.
        """
        app = self._backend.app
        retried = getattr(app.amqp, "_retry_publish", None)  # Celery 5.7
        try:
            if retried is None:
                body.delay(values)
            else:
                retried(body.delay, values)
        except Exception as error:  # the broker's, or the serializer's: the body fails of it
            if self._may_pass(error):
                raise _BrokerAwayError(repr(error)) from error
            logger.exception("chord %s: its body cannot be published", group_id)
            return _chord_error(f"Callback error: {error!r}", error)
        return None

    def _may_pass(self, error: Exception) -> bool:
        """Whether a broker that comes back would take what it did not take now."""
        if isinstance(error, (OperationalError, ConnectionError)):
            return True
        with self._backend.app.connection_for_write() as connection:  # opens nothing
            return isinstance(error, connection.recoverable_connection_errors)

    def _records(
        self, group: group_pb2.GroupMeta, members: list[group_pb2.GroupMember], body: Any
    ) -> dict[str, task_pb2.TaskMeta]:
        """Read the records of all parts, and that of the body."""
        ids = [member.id for member in members]
        if HEADER in group.extra:
            ids += _ids(self._shape(group))
        wanted = list(dict.fromkeys([*ids, *filter(None, [_id_of(body)])]))
        client = self._backend.client
        return {record.task_id: record for record in client.run(client.operations.read(wanted))}

    def _shape(self, group: group_pb2.GroupMeta) -> list[Any]:
        (_, shape) = self._backend.codec.decode(group.extra[HEADER])
        return list(shape)

    def _values(
        self,
        group: group_pb2.GroupMeta,
        ids: list[str],
        records: dict[str, task_pb2.TaskMeta],
    ) -> list[Any]:
        def value(task_id: str) -> Any:
            return self._value(records[task_id])

        if HEADER not in group.extra:
            return [value(task_id) for task_id in ids]
        return [_shaped(node, value) for node in self._shape(group)]

    def _value(self, record: task_pb2.TaskMeta) -> Any:
        part = self._backend.codec.part_of(record)
        if part["status"] in states.PROPAGATE_STATES:
            error = part["result"]
            raise _chord_error(f"Dependency {record.task_id} raised {error!r}", error)
        if record.existence != state_pb2.EXISTENCE_KNOWN:
            raise ChordError(f"Dependency {record.task_id} is gone: forgotten, or expired")
        return part["result"]

    def _fail(self, body: Any, error: ChordError) -> None:
        try:
            raise error  # Celery takes the traceback of what is being handled
        except ChordError:
            self._backend.chord_error_from_stack(body, error)
        # A body that is a part of another chord returns as one that failed.
        options = getattr(body, "options", None) or {}
        if options.get("chord") and options.get("group_id") and options.get("task_id"):
            request = Context(options, id=options["task_id"], group=options["group_id"])
            self._backend.on_chord_part_return(request, states.FAILURE, error)

    def _forget_ignored(
        self, group: group_pb2.GroupMeta, members: list[group_pb2.GroupMember]
    ) -> None:
        if not group.counts.ignored:
            return
        ignored = [member.id for member in members if member.state == state_pb2.STATE_IGNORED]
        client = self._backend.client
        with contextlib.suppress(ResultdError):  # else they expire
            client.run(client.operations.forget(dict.fromkeys(ignored)))

    # Taking over

    def notice(self, group_ids: Iterable[str]) -> None:
        """Hear of complete chords that nobody works on; take over those that stay so."""
        now = time.monotonic()
        for group_id in group_ids:
            since = self._noticed.pop(group_id, now)
            if now - since >= GRACE:
                self._take_over(group_id)
            else:
                self._noticed[group_id] = since
        while len(self._noticed) > NOTICED_MAX:
            self._noticed.pop(next(iter(self._noticed)), None)

    def ask(self) -> bool:
        """Look for such chords, in short calls; whether there are any to look at again."""
        left: list[str] = []
        for group in self._unfinished():
            if group.claim.holder:  # claimed, and its lease has run out
                self._take_over(group.group_id)
            else:
                left.append(group.group_id)
        self.notice(left)
        return any(group_id in self._noticed for group_id in left)

    def _unfinished(self) -> list[group_pb2.GroupMeta]:
        client = self._backend.client
        request = group_service_pb2.ListGroupsRequest(
            claimable=True,
            claim_scope=self._backend.options.claim_scope,
            page_token=self._page_token,
        )
        found: list[group_pb2.GroupMeta] = []
        try:
            for _ in range(PAGES_MAX):
                response = client.run(
                    client.operations.call("ListGroups", request, once=True, limit=1.0)
                )
                found += response.groups
                request.page_token = response.next_page_token
                if not request.page_token:
                    break
        except ResultdError as error:
            logger.debug("no answer about unfinished chords: %s", error)
            if not error.retryable:
                request.page_token = ""  # another server's, perhaps
        self._page_token = request.page_token
        return found

    def _take_over(self, group_id: str) -> None:
        try:
            if self.finish(group_id):
                logger.warning("chord %s was left unfinished by another: done here", group_id)
        except (ResultdError, _BrokerAwayError) as error:
            logger.warning("chord %s cannot be taken over now: %s", group_id, error)
        except Exception:  # whatever is wrong with it: who came by has other work to do
            logger.exception("chord %s cannot be taken over", group_id)

    def _call(self, method: str, request: Any, limit: float | None = None) -> Any:
        client = self._backend.client
        op: Op[Any] = client.operations.call(method, request, limit=limit)
        return client.run(op)

    def call_claim(
        self, request: group_service_pb2.ClaimGroupRequest, limit: float | None = None
    ) -> group_service_pb2.ClaimGroupResponse:
        """Ask for, or say something of, a claim of this app's workers."""
        request.holder = f"{socket.gethostname()}:{os.getpid()}"
        request.lease.CopyFrom(_records.duration(self._backend.options.chord_lease))
        response: group_service_pb2.ClaimGroupResponse = self._call("ClaimGroup", request, limit)
        return response

    @property
    def lease(self) -> float:
        """Seconds that whoever finishes a chord has for it."""
        return self._backend.options.chord_lease


class _BrokerAwayError(Exception):
    """The body cannot be published now. It may well be later."""


class _Claim:
    """The right to finish one chord, and how long it has been held."""

    def __init__(self, chords: Chords, group_id: str) -> None:
        self._chords = chords
        self._group_id = group_id
        self._token = uuid4().hex
        self._since = time.monotonic()

    def acquire(self) -> group_pb2.GroupMeta | None:
        """Take it, or renew it; gives the group, None if it is somebody else's or over."""
        began = time.monotonic()  # the lease does not begin before this
        try:
            response = self._call(_ACQUIRE)
        except (GroupNotFoundError, FailedPreconditionError):
            return None  # deleted or expired meanwhile
        self._since = began
        return response.group if response.outcome == _GRANTED else None

    def holds(self) -> bool:
        """Whether nobody else can have it for a while yet; renews it if need be."""
        if time.monotonic() - self._since <= self._chords.lease / 3:
            return True
        return self.acquire() is not None

    def done(self) -> bool:
        """Say that the chord is finished; whether the claim was ours to the end."""
        try:
            return self._call(_DONE).outcome == _GRANTED
        except ResultdError as error:
            logger.warning(
                "the body of chord %s was published, but the server cannot be told: it may be "
                "published a second time: %s",
                self._group_id,
                error,
            )
            return False

    def release(self) -> None:
        """Give it back undone. Best effort; else the lease runs out."""
        with contextlib.suppress(ResultdError):
            self._call(_RELEASE, limit=1.0)

    def _call(
        self, action: group_service_pb2.ClaimAction.ValueType, limit: float | None = None
    ) -> group_service_pb2.ClaimGroupResponse:
        request = group_service_pb2.ClaimGroupRequest(
            group_id=self._group_id, action=action, token=self._token
        )
        return self._chords.call_claim(request, limit)


class _Returning(threading.local):
    """What one thread is doing: how deep it is in final results, and what it was answered."""

    def __init__(self) -> None:
        self.depth = 0
        self.answers: dict[tuple[str, str], result_service_pb2.StoreResultResponse] = {}


def _place(meta: task_pb2.TaskMeta, request: Any) -> None:
    meta.group_id = request.group
    index = getattr(request, "group_index", None)
    if index is not None:
        meta.index = index


def _id_of(body: Any) -> str | None:
    found: str | None = (getattr(body, "options", None) or {}).get("task_id")
    return found


def _was_published(
    body: Any, records: dict[str, task_pb2.TaskMeta], group: group_pb2.GroupMeta
) -> bool:
    """Whether a worker has had the body since the chord became complete.

    Then an earlier claimant published it and could not say so. A record that is older is of
    an earlier run of the same chord.
    """
    record = records.get(_id_of(body) or "")
    if record is None or record.existence != state_pb2.EXISTENCE_KNOWN:
        return False
    if not record.terminal and record.state not in _AT_WORK:
        return False
    return record.updated_time.ToNanoseconds() > group.completed_time.ToNanoseconds()


def _chord_error(message: str, cause: object) -> ChordError:
    error = ChordError(message)
    if isinstance(cause, Exception):
        error.__cause__ = cause
    return error


def _ids(shape: list[Any]) -> Iterator[str]:
    for (id_, _), nodes in shape:
        if nodes is None:
            yield id_
        else:
            yield from _ids(nodes)


def _shaped(node: Any, value: Any) -> Any:
    (id_, _), nodes = node
    return value(id_) if nodes is None else [_shaped(each, value) for each in nodes]
