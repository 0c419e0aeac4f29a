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
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import states
from celery.app.task import Context
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult
from kombu.exceptions import EncodeError
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
# Seconds a complete chord is left to whoever returned its last part.
GRACE = 5.0
NOTICED_MAX = 64

_GRANTED = group_service_pb2.CLAIM_OUTCOME_GRANTED
_ACQUIRE = group_service_pb2.CLAIM_ACTION_ACQUIRE
_DONE = group_service_pb2.CLAIM_ACTION_DONE
_RELEASE = group_service_pb2.CLAIM_ACTION_RELEASE


class Chords:
    """The chords of one backend's app."""

    def __init__(self, backend: ResultdBackend) -> None:
        self._backend = backend
        self._returning = _Returning()
        self._noticed: dict[str, float] = {}

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
            self.finish(group_id)

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
            store = self._backend.codec.part(task_id, result, state, request)
            _place(store.meta, request)
            answer = self._find_place(store, self._backend.send(store))
        if group_id not in answer.complete_group_ids:
            return
        try:
            self.finish(group_id, request.chord)
        except ResultdError as error:
            if not error.retryable:
                raise
            logger.exception(
                "chord %s is complete, but the server went away before its body was published: "
                "another worker will do that",
                group_id,
            )

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

    def finish(self, group_id: str, callback: Any = None) -> bool:
        """Publish a complete chord's body, unless somebody else does; whether it was done here.

        Without `callback` the body that lies with the group is taken.
        """
        backend, token = self._backend, uuid4().hex
        group = self._claim(group_id, token, _ACQUIRE)
        if group is None:
            return False
        try:
            body = maybe_signature(callback or self._continuation(group), app=backend.app)
            if body is None:
                logger.error("chord %s is complete, and nobody knows its body", group_id)
                return False
            members = self._members(group_id)
            self._publish(group, members, body, token)
        except ResultdError:
            # Not known what is stored: somebody has to try again. Best effort; else the
            # lease runs out.
            with contextlib.suppress(ResultdError):
                self._claim(group_id, token, _RELEASE)
            raise
        self._claim(group_id, token, _DONE)
        self._forget_ignored(group, members)
        return True

    def _claim(
        self, group_id: str, token: str, action: group_service_pb2.ClaimAction.ValueType
    ) -> group_pb2.GroupMeta | None:
        request = group_service_pb2.ClaimGroupRequest(
            group_id=group_id,
            action=action,
            token=token,
            holder=f"{socket.gethostname()}:{os.getpid()}",
            lease=_records.duration(self._backend.options.chord_lease),
        )
        try:
            response = self._call("ClaimGroup", request)
        except (GroupNotFoundError, FailedPreconditionError):
            return None  # deleted or expired meanwhile
        return response.group if response.outcome == _GRANTED else None

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
        token: str,
    ) -> None:
        app, group_id = self._backend.app, group.group_id
        began = time.monotonic()
        try:
            values = self._values(group, [member.id for member in members])
        except ChordError as error:
            logger.error("chord %s: %s", group_id, error)
            self._fail(body, error)
            return
        except ResultdError:
            raise
        except Exception as error:  # what a value's own decoder raises
            logger.exception("chord %s: its parts cannot be read", group_id)
            self._fail(body, _chord_error(f"Join error: {error!r}", error))
            return
        if time.monotonic() - began > self._backend.options.chord_lease / 3 and (
            self._claim(group_id, token, _ACQUIRE) is None
        ):
            logger.warning("chord %s: its parts took too long, another worker has it", group_id)
            return
        retried = getattr(app.amqp, "_retry_publish", None)  # Celery 5.7
        try:
            if retried is None:
                body.delay(values)
            else:
                retried(body.delay, values)
        except Exception as error:  # the broker's, or the serializer's: the body fails of it
            logger.exception("chord %s: its body cannot be published", group_id)
            self._fail(body, _chord_error(f"Callback error: {error!r}", error))

    def _values(self, group: group_pb2.GroupMeta, ids: list[str]) -> list[Any]:
        backend = self._backend
        shape = None
        if HEADER in group.extra:
            (_, shape) = backend.codec.decode(group.extra[HEADER])
        wanted = dict.fromkeys(ids if shape is None else _ids(shape))
        client = backend.client
        records = {
            record.task_id: record for record in client.run(client.operations.read(list(wanted)))
        }

        def value(task_id: str) -> Any:
            return self._value(records[task_id])

        if shape is None:
            return [value(task_id) for task_id in ids]
        return [_shaped(node, value) for node in shape]

    def _value(self, record: task_pb2.TaskMeta) -> Any:
        part = self._backend.codec.part_of(record)
        if part["status"] in states.PROPAGATE_STATES:
            error = part["result"]
            raise _chord_error(f"Dependency {record.task_id} raised {error!r}", error)
        if record.existence != state_pb2.EXISTENCE_KNOWN:
            raise ChordError(f"Dependency {record.task_id} is gone: forgotten, or expired")
        return part["result"]

    def _fail(self, body: Any, error: ChordError) -> None:
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

    def notice(self, group_ids: Any) -> None:
        """Hear of complete chords that nobody works on; take over those that stay so."""
        now = time.monotonic()
        for group_id in group_ids:
            since = self._noticed.setdefault(group_id, now)
            if now - since >= GRACE:
                self._noticed.pop(group_id, None)
                self._take_over(group_id)
        while len(self._noticed) > NOTICED_MAX:
            self._noticed.pop(next(iter(self._noticed)))

    def ask(self) -> bool:
        """Look for such chords, in one short call; whether there are any to look at again."""
        client = self._backend.client
        request = group_service_pb2.ListGroupsRequest(
            claimable=True, claim_scope=self._backend.options.claim_scope
        )
        try:
            response = client.run(
                client.operations.call("ListGroups", request, once=True, limit=1.0)
            )
        except ResultdError as error:
            logger.debug("no answer about unfinished chords: %s", error)
            return False
        found = [group.group_id for group in response.groups]
        self.notice(found)
        return bool(found)

    def _take_over(self, group_id: str) -> None:
        try:
            if self.finish(group_id):
                logger.warning("chord %s was left unfinished by another: done here", group_id)
        except ResultdError as error:
            logger.warning("chord %s cannot be taken over now: %s", group_id, error)

    def _call(self, method: str, request: Any) -> Any:
        client = self._backend.client
        op: Op[Any] = client.operations.call(method, request)
        return client.run(op)


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
