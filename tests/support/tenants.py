"""Tenants, and requests they might make: every field of every RPC, filled from a vocabulary.

tenant = Tenant("red", seed=7)
request = filled(METHODS[name].input_type, Writer(tenant, others))

`VOCABULARY` says for every field of every request what a tenant may put there. A field that is
not in it raises: a new RPC cannot be forgotten.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from google.protobuf import message_factory
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from resultd.v1 import group_pb2, result_service_pb2, state_pb2, task_pb2, value_pb2
from tests.support.twins import is_repeated

TASKS = 24
GROUPS = 6
"""Ids that all tenants use, on purpose."""

KEPT = 40
"""Of each kind of thing a tenant was handed, or has made up."""

LONG_S = 3_600
"""Leases and lives outlast a round, so that time changes nothing."""

T = TypeVar("T", str, bytes)

_STATES = (
    state_pb2.STATE_STARTED,
    state_pb2.STATE_SUCCESS,
    state_pb2.STATE_SUCCESS,
    state_pb2.STATE_FAILURE,
    state_pb2.STATE_RETRY,
    state_pb2.STATE_REVOKED,
    state_pb2.STATE_CUSTOM,
)


class Tenant:
    """Who it is, the word that is in all it writes, and what it was handed.

    `token`: its credential. `mark`: 16 hexadecimal digits that nobody else can guess.
    `tokens`, `afters`: opaque words it was handed, pages' and streams', and what its twin handed
    out for each. `secrets`: ids, claim tokens and request ids it has made up. `held`: what
    it waits for and has nothing of. `learned`: words of others it has said itself, and may read.
    """

    def __init__(self, name: str, dice: random.Random) -> None:
        self.name = name
        self.dice = dice
        self.mark = f"{dice.getrandbits(64):016x}"
        self.token = ""
        self.tokens: dict[str, str] = {}
        self.afters: dict[bytes, bytes] = {}
        self.secrets: deque[str] = deque(maxlen=KEPT)
        self.held = ""
        self.learned: set[bytes] = set()
        self._words = 0

    def word(self) -> str:
        """Something that only this tenant writes, different each time."""
        self._words += 1
        return f"{self.mark}-{self._words}."

    def words_in(self, raw: bytes) -> set[bytes]:
        """Every word of this tenant that stands there; the mark alone where it is cut."""
        mark = self.mark.encode()
        return set(re.findall(mark + rb"(?:-\d+\.)?", raw)) if mark in raw else set()


def keep(words: dict[T, T], word: T, twins: T) -> None:
    """An opaque word, and the twin's in its place; old ones are dropped."""
    words[word] = twins
    if len(words) > KEPT:
        del words[next(iter(words))]


class Writer:
    """Fills one request of a tenant.

    `others`: whose ids and opaque words it may have got hold of. `held`: an id that has to be
    asked for, if any id is.
    """

    def __init__(self, tenant: Tenant, others: Sequence[Tenant], held: str = "") -> None:
        self.tenant = tenant
        self.dice = tenant.dice
        self.held = held
        self._others = others

    def chance(self, likely: float) -> bool:
        """Whether something with this likelihood comes about."""
        return self.dice.random() < likely

    def word(self) -> str:
        """The tenant's mark, and what makes it different each time."""
        return self.tenant.word()

    def task_id(self) -> str:
        """A task everybody uses, one that others wait for, or one that is somebody's secret."""
        return self.held or self._id("t", TASKS)

    def group_id(self) -> str:
        """The same of groups."""
        return self.held or self._id("g", GROUPS)

    def task_ids(self) -> list[str]:
        """One to five of them."""
        first = [self.held] if self.held else []
        return first + [self._id("t", TASKS) for _ in range(self.dice.randint(1, 4))]

    def _id(self, letter: str, count: int) -> str:
        waited_for = [each.held for each in self._others if each.held]
        if waited_for and self.chance(0.4):
            return self.dice.choice(waited_for)
        return self.secret() if self.chance(0.06) else f"{letter}{self.dice.randrange(count)}"

    def secret(self) -> str:
        """A word that this tenant, or another one, has made up."""
        if self.chance(0.5):
            known = self.dice.choice(self._others).secrets
        else:
            known = self.tenant.secrets
            if not known or self.chance(0.3):
                known.append(self.word())
        return self.dice.choice(known) if known else self.word()

    def page_token(self) -> str:
        """None, one of its own, or another tenant's."""
        found: str = self._opaque([list(each.tokens) for each in self._all()], "")
        return found

    def after(self) -> bytes:
        """The same of a stream's."""
        found: bytes = self._opaque([list(each.afters) for each in self._all()], b"")
        return found

    def _all(self) -> list[Tenant]:
        return [self.tenant, self.tenant, *self._others]

    def _opaque(self, known: Sequence[Sequence[Any]], none: Any) -> Any:
        there = self.dice.choice(known)
        return self.dice.choice(there) if there and self.chance(0.5) else none


def filled(kind: Any, writer: Writer) -> Any:
    """A message of this descriptor as a tenant might write it.

    Raises KeyError for a field nobody has thought of.
    """
    made: Any = message_factory.GetMessageClass(kind)()
    for field in kind.fields:
        value = VOCABULARY[f"{kind.name}.{field.name}"](writer)
        if value is not None:
            _put(made, field, value)
    return made


def _put(made: Any, field: Any, value: Any) -> None:
    if isinstance(value, dict):
        target = getattr(made, field.name)
        for key, each in value.items():
            if isinstance(each, Message):
                target[key].CopyFrom(each)
            else:
                target[key] = each
    elif is_repeated(field):
        getattr(made, field.name).extend(value)
    elif isinstance(value, Message):
        getattr(made, field.name).CopyFrom(value)
    else:
        setattr(made, field.name, value)


Chooser = Callable[[Writer], Any]
"""What stands in a field this time; None leaves it unset."""


def _nothing(_: Writer) -> None:
    return None


def _always(value: Any) -> Chooser:
    return lambda _: value


def _one_of(*values: Any) -> Chooser:
    return lambda writer: writer.dice.choice(values)


def _maybe(likely: float, chooser: Chooser) -> Chooser:
    return lambda writer: chooser(writer) if writer.chance(likely) else None


def _several(most: int, chooser: Chooser) -> Chooser:
    return lambda writer: [chooser(writer) for _ in range(writer.dice.randint(0, most))]


def _made(kind: type[Message]) -> Chooser:
    return lambda writer: filled(kind.DESCRIPTOR, writer)


def _lasting(_: Writer) -> Duration:
    return Duration(seconds=LONG_S)


def _always_or_never(writer: Writer) -> Timestamp:
    """1970 or 2100: the servers that are compared do not write at the same millisecond."""
    return Timestamp(seconds=writer.dice.choice((0, 4_102_444_800)))


def _labels(writer: Writer) -> dict[str, str]:
    return {f"k{number}": writer.word() for number in range(writer.dice.randint(0, 2))}


def _extra(writer: Writer) -> dict[str, value_pb2.Payload]:
    return {f"k{number}": _payload(writer) for number in range(writer.dice.randint(0, 2))}


def _payload(writer: Writer) -> value_pb2.Payload:
    made: value_pb2.Payload = filled(value_pb2.Payload.DESCRIPTOR, writer)
    return made


def _failure(writer: Writer) -> value_pb2.Failure:
    failure = value_pb2.Failure(type=writer.word(), message=writer.word(), args=_payload(writer))
    failure.module, failure.traceback, failure.language = (writer.word() for _ in range(3))
    failure.cause.type = writer.word()
    return failure


def _report(writer: Writer) -> Message:
    """What a worker says of a task: state, and what goes with it."""
    said = writer.dice.choice(_STATES)
    meta = task_pb2.TaskMeta(task_id=writer.task_id(), state=said, worker=writer.word())
    meta.attempt = writer.dice.choice((0, 0, 1, 2))
    if said in (state_pb2.STATE_SUCCESS, state_pb2.STATE_CUSTOM):
        meta.value.CopyFrom(_payload(writer))
    if said in (state_pb2.STATE_FAILURE, state_pb2.STATE_RETRY):
        meta.failure.CopyFrom(_failure(writer))
    if said == state_pb2.STATE_CUSTOM:
        meta.custom_state = writer.word()
    if writer.chance(0.4):
        meta.group_id = writer.group_id()
        if writer.chance(0.5):
            meta.index = writer.dice.randrange(6)
    if writer.chance(0.3):
        _add_details(meta, writer)
    return meta


def _add_details(meta: task_pb2.TaskMeta, writer: Writer) -> None:
    meta.name, meta.queue, meta.parent_id, meta.root_id = (writer.word() for _ in range(4))
    meta.args.CopyFrom(_payload(writer))
    meta.kwargs.CopyFrom(_payload(writer))
    meta.progress.message = writer.word()
    meta.children.append(task_pb2.Child(id=writer.word()))
    meta.labels.update(_labels(writer))
    for key, value in _extra(writer).items():
        meta.extra[key].CopyFrom(value)


def _member_id(writer: Writer) -> str:
    return writer.group_id() if writer.chance(0.1) else writer.task_id()


_task = Writer.task_id
_group = Writer.group_id
_tasks = Writer.task_ids
_scope = _one_of("", "scope", "another scope")
_ttl = _maybe(0.3, _lasting)
_no_expiry = _maybe(0.1, _always(True))
_page_size = _one_of(0, 1, 2, 5, 1_000)
_members = _several(3, _made(group_pb2.GroupMember))
_watched = _made(result_service_pb2.GroupWatch)
_few_tasks = _maybe(0.3, _tasks)

VOCABULARY: dict[str, Chooser] = {
    "StoreResultRequest.meta": _report,
    "StoreResultRequest.ttl": _ttl,
    "StoreResultRequest.no_expiry": _no_expiry,
    "StoreResultRequest.claim_scope": _scope,
    "StoreResultRequest.claim": _maybe(0.2, _made(result_service_pb2.ClaimOnComplete)),
    "ClaimOnComplete.token": Writer.secret,
    "ClaimOnComplete.lease": _lasting,
    "ClaimOnComplete.holder": Writer.word,
    "ClaimOnComplete.with_members": _one_of(False, True),
    "ClaimOnComplete.members_ahead": _one_of(False, True),
    "ClaimOnComplete.members_after": Writer.after,
    "BatchStoreResultsRequest.reports": _several(4, _made(result_service_pb2.StoreResultRequest)),
    "GetResultRequest.task_id": _task,
    "BatchGetResultsRequest.task_ids": _tasks,
    "WaitForRequest.task_ids": _tasks,
    "WaitForRequest.return_when": _one_of(0, 1, 2, 3),
    "WaitForRequest.transitions": _one_of(False, True),
    "WaitForRequest.on_gone": _one_of(0, 1, 2),
    "WaitForRequest.heartbeat": _nothing,
    "WaitForRequest.timeout": _nothing,
    "IterateRequest.group_id": _group,
    "IterateRequest.order": _one_of(0, 1, 2),
    "IterateRequest.after": Writer.after,
    "IterateRequest.require_known": _maybe(0.2, _always(True)),
    "IterateRequest.heartbeat": _nothing,
    "IterateRequest.timeout": _nothing,
    "WatchRequest.add_task_ids": _tasks,
    "WatchRequest.remove_task_ids": _few_tasks,
    "WatchRequest.add_groups": lambda writer: [_watched(writer)],
    "WatchRequest.remove_group_ids": _nothing,
    "WatchRequest.sequence": _always(1),
    "WatchRequest.transitions": _one_of(False, True),
    "WatchRequest.on_gone": _one_of(0, 1, 2),
    "WatchRequest.heartbeat": _nothing,
    "GroupWatch.group_id": _group,
    "GroupWatch.after": _maybe(0.3, Writer.after),
    "ForgetResultsRequest.task_ids": _tasks,
    "ListResultsRequest.states": _maybe(0.2, _several(2, _one_of(*_STATES))),
    "ListResultsRequest.name": _maybe(0.1, Writer.secret),
    "ListResultsRequest.group_id": _maybe(0.3, _group),
    "ListResultsRequest.since": _maybe(0.2, _always_or_never),
    "ListResultsRequest.page_size": _page_size,
    "ListResultsRequest.page_token": Writer.page_token,
    "CreateGroupRequest.group_id": _group,
    "CreateGroupRequest.members": _members,
    "CreateGroupRequest.continuation": _maybe(0.5, _payload),
    "CreateGroupRequest.claim_scope": _scope,
    "CreateGroupRequest.ttl": _ttl,
    "CreateGroupRequest.no_expiry": _no_expiry,
    "CreateGroupRequest.labels": _labels,
    "CreateGroupRequest.extra": _extra,
    "CreateGroupRequest.seal": _one_of(False, True),
    "CreateGroupRequest.new_epoch": _maybe(0.4, _always(True)),
    "AddGroupMembersRequest.group_id": _group,
    "AddGroupMembersRequest.members": _members,
    "AddToTotalRequest.group_id": _group,
    "AddToTotalRequest.delta": _one_of(1, 2),
    "AddToTotalRequest.request_id": Writer.secret,
    "SealGroupRequest.group_id": _group,
    "SealGroupRequest.expected_total": _one_of(None, 1, 2, 3),
    "GetGroupRequest.group_id": _group,
    "ListGroupsRequest.incomplete": _maybe(0.2, _always(True)),
    "ListGroupsRequest.claimable": _one_of(False, True),
    "ListGroupsRequest.unchanged_since": _maybe(0.2, _always_or_never),
    "ListGroupsRequest.claim_scope": _scope,
    "ListGroupsRequest.page_size": _page_size,
    "ListGroupsRequest.page_token": Writer.page_token,
    "ListGroupMembersRequest.group_id": _group,
    "ListGroupMembersRequest.page_size": _page_size,
    "ListGroupMembersRequest.page_token": Writer.page_token,
    "DeleteGroupRequest.group_id": _group,
    "ClaimGroupRequest.group_id": _group,
    "ClaimGroupRequest.action": _one_of(0, 1, 2, 3),
    "ClaimGroupRequest.lease": _lasting,
    "ClaimGroupRequest.token": Writer.secret,
    "ClaimGroupRequest.holder": Writer.word,
    "ClaimGroupRequest.with_members": _one_of(False, True),
    "RevokeTasksRequest.task_ids": _tasks,
    "RevokeTasksRequest.terminate": _one_of(False, True),
    "RevokeTasksRequest.signal": _one_of("", "SIGINT"),
    "RevokeTasksRequest.reason": Writer.word,
    "WatchRevocationsRequest.add_task_ids": _tasks,
    "WatchRevocationsRequest.remove_task_ids": _few_tasks,
    "WatchRevocationsRequest.heartbeat": _nothing,
    "WatchRevocationsRequest.sequence": _always(1),
    "GroupMember.index": _maybe(0.4, lambda writer: writer.dice.randrange(6)),
    "GroupMember.id": _member_id,
    "GroupMember.kind": _one_of(0, 1, 1, 2),
    "GroupMember.position": _nothing,
    "GroupMember.state": _nothing,
    "Payload.content_type": Writer.word,
    "Payload.content_encoding": _nothing,
    "Payload.data": lambda writer: writer.word().encode() * writer.dice.choice((1, 3, 200)),
}
"""By message and field, as they stand in the protocol."""
