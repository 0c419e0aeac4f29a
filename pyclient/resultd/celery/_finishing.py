"""Finishing a complete chord: claimed, read, published once, and said to be done.

Whoever claims it has a lease. Should it die before it says "done", the lease runs out and
another finishes the chord: what lies with the group and in the parts' records is all it needs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import states
from celery.app.task import Context
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from kombu.exceptions import OperationalError
from kombu.serialization import loads, prepare_accept_content

from resultd import _iterate, _records
from resultd.errors import FailedPreconditionError, GroupNotFoundError, ResultdError, make
from resultd.errors import TimeoutError as WaitTimeout
from resultd.v1 import (
    group_pb2,
    group_service_pb2,
    result_service_pb2,
    state_pb2,
    stream_pb2,
    task_pb2,
)

if TYPE_CHECKING:
    from resultd.celery._parts_ahead import ChordAhead
    from resultd.celery.backend import ResultdBackend

logger = logging.getLogger("resultd.celery")

#: The header's shape, where it holds groups: the body gets lists in lists.
HEADER = "celery.header"

# Parts that share a group index (a task that add_to_chord() added has that of the one that
# added it) stand in lanes: index = lane * LANE + group index. Sorted by both, they stand side
# by side.
LANE = 1 << 24
# What only a worker says of a task: whoever reads it of a body knows that it was published.
_AT_WORK = (state_pb2.STATE_STARTED, state_pb2.STATE_RETRY)

_GRANTED = group_service_pb2.CLAIM_OUTCOME_GRANTED
_ACQUIRE = group_service_pb2.CLAIM_ACTION_ACQUIRE
_DONE = group_service_pb2.CLAIM_ACTION_DONE
_RELEASE = group_service_pb2.CLAIM_ACTION_RELEASE


class Finisher:
    """Finishes the chords of one backend's app."""

    def __init__(self, backend: ResultdBackend) -> None:
        self._backend = backend

    def finish(self, claim: Claim, callback: Any = None) -> bool:
        """Publish a complete chord's body, unless somebody else does; whether it was done here.

        Without `callback` the body that lies with the group is taken.
        """
        if not claim.take():
            return False
        group, parts = claim.group, Parts(self._backend, claim)
        try:
            body = maybe_signature(callback or self._continuation(group), app=self._backend.app)
            if body is None:
                logger.error("chord %s is complete, and nobody knows its body", claim.group_id)
                return False
            published = self._publish(parts, body, claim)
        except (ResultdError, BrokerAwayError):
            # Not known what is stored, or sent: somebody has to try again.
            claim.release()
            raise
        _let_others_go_first()
        if published and claim.done():
            self._forget_ignored(group, parts)
        return published

    def _continuation(self, group: group_pb2.GroupMeta) -> Any:
        payload = group.continuation
        if not payload.data:
            return None
        # What a worker of this app would accept as a task's message, and no more.
        accept = prepare_accept_content(self._backend.app.conf.accept_content)
        return loads(payload.data, payload.content_type, "utf-8", accept=accept)

    def _publish(self, parts: Parts, body: Any, claim: Claim) -> bool:
        """Publish the body with all parts, or fail it; False if the claim was lost over it."""
        group, group_id = claim.group, claim.group.group_id
        error: ChordError | None = None
        values: list[Any] = []
        try:
            if not claim.first and self._was_published(body, group):
                logger.info("the body of chord %s was published by another before", group_id)
                return True
            values = self._values(group, parts)
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
            BrokerAwayError: not now; perhaps later.
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
                raise BrokerAwayError(repr(error)) from error
            logger.exception("chord %s: its body cannot be published", group_id)
            return _chord_error(f"Callback error: {error!r}", error)
        return None

    def _may_pass(self, error: Exception) -> bool:
        """Whether a broker that comes back would take what it did not take now."""
        if isinstance(error, (OperationalError, ConnectionError)):
            return True
        with self._backend.app.connection_for_write() as connection:  # opens nothing
            return isinstance(error, connection.recoverable_connection_errors)

    def _was_published(self, body: Any, group: group_pb2.GroupMeta) -> bool:
        """Whether a worker has had the body since the chord became complete.

        Then an earlier claimant published it and could not say so. A record that is older is
        of an earlier run of the same chord.
        """
        body_id = (getattr(body, "options", None) or {}).get("task_id")
        if not body_id:
            return False
        client = self._backend.client
        (record,) = client.run(client.operations.read([body_id]))
        if record.existence != state_pb2.EXISTENCE_KNOWN:
            return False
        if not record.terminal and record.state not in _AT_WORK:
            return False
        return record.updated_time.ToNanoseconds() > group.completed_time.ToNanoseconds()

    def _values(self, group: group_pb2.GroupMeta, parts: Parts) -> list[Any]:
        if HEADER not in group.extra:
            return parts.known() or self._read(parts.read())
        (_, shape) = self._backend.codec.decode(group.extra[HEADER])
        ids, values = list(_ids(shape)), parts.known_by_id()
        if not values.keys() >= set(ids):
            values = dict(zip(ids, self._read(self._records(ids, parts)), strict=True))
        return [_shaped(node, values) for node in shape]

    def _records(self, ids: list[str], parts: Parts) -> list[task_pb2.TaskMeta]:
        known = {record.task_id: record for record in parts.read()}
        missing = [task_id for task_id in dict.fromkeys(ids) if task_id not in known]
        if missing:
            client = self._backend.client
            found = client.run(client.operations.read(missing))
            known.update((record.task_id, record) for record in found)
        return [known[task_id] for task_id in ids]

    def _read(self, records: list[task_pb2.TaskMeta]) -> list[Any]:
        values = self._backend.codec.values(records)
        return values if values is not None else [self._value(record) for record in records]

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

    def _forget_ignored(self, group: group_pb2.GroupMeta, parts: Parts) -> None:
        if not group.counts.ignored:
            return
        ignored = [
            record.task_id for record in parts.records if record.state == state_pb2.STATE_IGNORED
        ]
        client = self._backend.client
        with contextlib.suppress(ResultdError):  # else they expire
            client.run(client.operations.forget(dict.fromkeys(ignored)))


class BrokerAwayError(Exception):
    """The body cannot be published now. It may well be later."""


class Parts:
    """The records of a chord's parts: those that came before its claim, with it, and the rest."""

    def __init__(self, backend: ResultdBackend, claim: Claim) -> None:
        self._client = backend.client
        self._codec = backend.codec
        self._group = claim.group
        self._members = claim.members
        self._ahead = claim.ahead
        # Where others come before them they are of no use without those.
        alone = self._members is not None and not self._members.continued
        self._first = self._members if alone else None
        #: What `read` returned.
        self.records: list[task_pb2.TaskMeta] = []

    def known(self) -> list[Any]:
        """What they returned, in the order of the header, if all but the last ones were read ahead;
        else nothing.
        """
        _, values = self._read_ahead()
        in_order = sorted(values)
        if in_order and in_order[-1] >= LANE:
            in_order.sort(key=_in_header)
        return list(map(values.__getitem__, in_order))

    def known_by_id(self) -> dict[str, Any]:
        """The same by their tasks."""
        task_ids, values = self._read_ahead()
        return {task_ids[index]: value for index, value in values.items()}

    def _read_ahead(self) -> tuple[dict[int, str], dict[int, Any]]:
        if self._ahead is None or self._members is None:
            return {}, {}
        return self._ahead.with_rest(self._members, self._group.counts.done)

    def read(self) -> list[task_pb2.TaskMeta]:
        """Return them in the order of the header.

        Raises:
            ResultdError: not all came, or they are those of another run of the chord.
        """
        events = list(self._first.events) if self._first else []
        if self._first is None or self._first.after:
            events = self._rest(events)
        events.sort(key=attrgetter("index"))
        if events and events[-1].index >= LANE:
            events.sort(key=lambda event: _in_header(event.index))
        self.records = [event.task for event in events]
        return self.records

    def _rest(self, events: list[stream_pb2.Event]) -> list[stream_pb2.Event]:
        request = result_service_pb2.IterateRequest(
            group_id=self._group.group_id,
            order=result_service_pb2.MEMBER_ORDER_AS_COMPLETED,
            after=self._first.after if self._first else b"",
            require_known=True,
        )
        found = {event.index: event for event in events}
        client = self._client
        frames = client.iterate(_iterate.frames(client, request, client.url.timeout))
        try:
            for fresh in frames:
                if fresh.counts.epoch not in (0, self._group.counts.epoch):
                    raise make("UNAVAILABLE", "the chord was applied again meanwhile")
                # A stream that starts again brings the first ones too.
                found.update((event.index, event) for event in fresh.events)
        except WaitTimeout as error:
            raise make("UNAVAILABLE", "the chord's parts did not come in time") from error
        finally:
            frames.close()  # type: ignore[attr-defined]  # a generator
        return list(found.values())


def _in_header(index: int) -> tuple[int, int]:
    return index % LANE, index


class Claim:
    """The right to finish one chord, and how long it has been held."""

    def __init__(self, backend: ResultdBackend, group_id: str) -> None:
        self._backend = backend
        self._lease = backend.options.chord_lease
        self.group_id = group_id
        self._token = uuid4().hex
        self._since = time.monotonic()  # the lease does not begin before this
        self._outcome = group_service_pb2.CLAIM_OUTCOME_UNSPECIFIED
        # Whether a report asked for it and has no answer, or one without room.
        self._asked = False
        #: What the server said when it was taken: the group, whether nobody had it before, and
        #: the first members, if they were asked for and are of that run.
        self.group = group_pb2.GroupMeta()
        self.first = False
        self.members: group_service_pb2.ClaimedMembers | None = None
        #: What was read of the parts before, if a report asks for it.
        self.ahead: ChordAhead | None = None

    def ask_with(self, store: result_service_pb2.StoreResultRequest, ahead: ChordAhead) -> None:
        """Have a report ask for it, should the chord be complete with that, and for other parts."""
        store.claim.token = self._token
        store.claim.lease.CopyFrom(_records.duration(self._lease))
        store.claim.holder = _holder()
        store.claim.with_members = True
        ahead.ask_with(store)
        self.ahead = ahead
        self._asked = True

    def hear(self, answer: result_service_pb2.StoreResultResponse) -> None:
        """Take from the answer to that report what came of it, if it says so."""
        self._heard(answer.claim)
        self._asked = answer.groups_omitted  # then it may have been granted
        if self.ahead is not None:
            self.ahead.hear(answer)

    @property
    def granted(self) -> bool:
        """Whether it was granted, as far as was heard."""
        return self._outcome == _GRANTED

    @property
    def may_be_ours(self) -> bool:
        """Whether it was granted, or may have been in an answer that did not come."""
        return self.granted or self._asked

    def take(self) -> bool:
        """Whether it is ours: asked for now, unless a report's answer said so."""
        if self._outcome:
            return self.granted
        return self._acquire(with_members=True)

    def _acquire(self, *, with_members: bool = False) -> bool:
        """Take it, or renew it; False if it is somebody else's or over."""
        began = time.monotonic()
        try:
            response = self._call(_ACQUIRE, with_members=with_members)
        except (GroupNotFoundError, FailedPreconditionError):
            return False  # deleted or expired meanwhile
        self._since = began
        self._heard(response)
        return self.granted

    def _heard(self, response: group_service_pb2.ClaimGroupResponse) -> None:
        self._outcome = response.outcome
        if self.granted:
            self.group, self.first = response.group, response.first
            self.members = response.members if response.HasField("members") else None

    def holds(self) -> bool:
        """Whether nobody else can have it for a while yet; renews it if need be."""
        if time.monotonic() - self._since <= self._lease / 3:
            return True
        return self._acquire()

    def done(self) -> bool:
        """Say that the chord is finished; whether the claim was ours to the end."""
        try:
            return self._call(_DONE).outcome == _GRANTED
        except ResultdError as error:
            logger.warning(
                "the body of chord %s was published, but the server cannot be told: it may be "
                "published a second time: %s",
                self.group_id,
                error,
            )
            return False

    def release(self) -> None:
        """Give it back undone. Best effort; else the lease runs out."""
        with contextlib.suppress(ResultdError):
            self._call(_RELEASE, limit=1.0)

    def _call(
        self,
        action: group_service_pb2.ClaimAction.ValueType,
        *,
        limit: float | None = None,
        with_members: bool = False,
    ) -> group_service_pb2.ClaimGroupResponse:
        client = self._backend.client
        request = group_service_pb2.ClaimGroupRequest(
            group_id=self.group_id,
            action=action,
            token=self._token,
            lease=_records.duration(self._lease),
            holder=_holder(),
            with_members=with_members,
        )
        response: group_service_pb2.ClaimGroupResponse = client.run(
            client.operations.call("ClaimGroup", request, limit=limit)
        )
        return response


def _let_others_go_first() -> None:
    """Leave the core to who was just sent the body: what is said next keeps the server busy.

    Where there are as many cores as are wanted it does nothing, and is not everywhere.
    """
    if hasattr(os, "sched_yield"):
        os.sched_yield()


def _holder() -> str:
    """Who has a claim, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"


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


def _shaped(node: Any, values: dict[str, Any]) -> Any:
    (id_, _), nodes = node
    return values[id_] if nodes is None else [_shaped(each, values) for each in nodes]
