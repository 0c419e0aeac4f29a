"""The contract for every engine that has transactions: the rules, run inside them.

A subclass says how a transaction is run (`_write`, `_read`); what happens in it is the
same for all.
"""

from __future__ import annotations

import abc
import asyncio
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

from resultd.v1 import (
    group_pb2,
    group_service_pb2,
    result_service_pb2,
    worker_service_pb2,
)
from resultd_server import limits
from resultd_server.engine.base import Engine, StoreOutcome, Swept
from resultd_server.errors import DomainError, GroupNotFound, RecordCorrupt
from resultd_server.ledger import (
    batch,
    cancel,
    claiming,
    expiry,
    group_payloads,
    groups,
    listing,
    namespaces,
    progress,
    records,
    revocations,
    usage,
)
from resultd_server.ledger.claiming import Claimed, ClaimRequest, Owing
from resultd_server.ledger.group_payloads import Owed
from resultd_server.ledger.group_rows import Shown
from resultd_server.ledger.groups import Declaration, NewMember
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.listing import Page
from resultd_server.ledger.progress import Cursor, Step
from resultd_server.ledger.records import Record, Report
from resultd_server.ledger.unit import Unit, View
from resultd_server.ledger.usage import Allowance, Held

T = TypeVar("T")

_ID_BYTES_MIN = 32
_SWEPT_BYTES = 100
"""What a step of a sweep writes, roughly."""

_AT_ONCE_BYTES = 64 * limits.KIB
"""What is owed and larger is read when there is room for it, for one caller after the other."""

NOWHERE = Namespace("", b"\0" * 8)
"""Read where a namespace has never been written: no key begins so."""


class TransactionalEngine(Engine):
    """An engine whose transactions are `ledger.txn` transactions."""

    def __init__(self, clock: Callable[[], int], allowance: Allowance) -> None:
        super().__init__(clock)
        self.allowance = allowance
        self._namespaces = namespaces.Known()
        self._revocations = 0
        self._groups_incomplete = 0
        self._census = usage.Census()
        self._turn = asyncio.Lock()
        self._damage = _Damage()

    @abc.abstractmethod
    async def _write(
        self,
        operation: Callable[[Unit], T],
        *,
        grows: bool = True,
        size_bytes: int = 0,
        reports: int = 0,
    ) -> T:
        """Runs an operation in a transaction; returns once that is durable.

        `grows`: whether it is to be refused while the store is full. `size_bytes`, `reports`:
        what it was given, and how many reports that is. Raises what the operation raises; it
        then changed nothing.
        """

    @abc.abstractmethod
    def _read(self, operation: Callable[[View], T]) -> T:
        """Runs a short reading operation."""

    def _known(self, view: View, name: str) -> Namespace:
        known = self._namespaces.named(name)
        if known is None:
            known = namespaces.find(view.txn, name)
            if known is None:
                return NOWHERE._replace(name=name)
            self._namespaces.keep(known)
        return known

    def _wanted(self, unit: Unit, name: str) -> Namespace:
        """The namespace of an operation that may put something there, and then begins it."""
        return self._namespaces.named(name) or namespaces.find_or_next(unit.txn, name)

    def _begin_namespace(self, unit: Unit, namespace: Namespace) -> None:
        # Not kept in mind from here: the transaction may still fail.
        if self._namespaces.named(namespace.name) is None:
            namespaces.begin(unit.txn, namespace)

    def _there(self, unit: Unit, name: str) -> Namespace:
        """The namespace of an operation that needs something there: none is made for it."""
        known = self._namespaces.named(name) or namespaces.find(unit.txn, name)
        return known or NOWHERE._replace(name=name)

    async def put(self, namespace: str, reports: Sequence[Report]) -> list[StoreOutcome]:
        outcomes = await self._put_some(namespace, reports, limits.RESPONSE_BYTES_MAX)
        if len(outcomes) == len(reports):
            return outcomes
        room = batch.ClaimRoom(limits.RESPONSE_BYTES_MAX)
        done: list[StoreOutcome] = []
        while True:
            for report, outcome in zip(reports, outcomes, strict=False):
                room.take(report, outcome)
            done += outcomes
            reports = reports[len(outcomes) :]
            if not reports:
                return done
            await asyncio.sleep(0)  # others have their turn, with an engine too that never waits
            outcomes = await self._put_some(namespace, reports, room.left_bytes)

    async def _put_some(
        self, namespace: str, reports: Sequence[Report], room_bytes: int
    ) -> list[StoreOutcome]:
        """The same of the first of them, at least one: as many as one transaction takes.

        `room_bytes`: for the claims of their answers.
        """

        def operation(unit: Unit) -> tuple[Namespace | None, list[batch.Outcome]]:
            where = self._wanted(unit, namespace)
            outcomes = batch.store_all(unit, where, reports, room_bytes)
            if self._namespaces.named(namespace) is not None:
                return None, outcomes  # as nearly always
            if all(isinstance(each, DomainError) for each in outcomes):
                return None, outcomes
            self._begin_namespace(unit, where)
            return where, outcomes

        size_bytes = sum([len(report.wire) for report in reports])
        try:
            begun, outcomes = await self._write(
                operation, size_bytes=size_bytes, reports=len(reports)
            )
            if begun is not None:
                self._namespaces.keep(begun)  # it is committed
        except RecordCorrupt as error:
            # Nothing was changed. Each by itself, so that the others do not suffer.
            if len(reports) == 1:
                return [error]
            return await self._put_singly(namespace, reports, room_bytes)
        return await self._told(outcomes)

    async def _put_singly(
        self, namespace: str, reports: Sequence[Report], room_bytes: int
    ) -> list[StoreOutcome]:
        outcomes: list[StoreOutcome] = []
        room = batch.ClaimRoom(room_bytes)
        for each in reports:
            report = room.report(each)
            outcomes += await self._put_some(namespace, [report], room.left_bytes)
            room.take(report, outcomes[-1])
        return outcomes

    async def _told(self, outcomes: list[batch.Outcome]) -> list[StoreOutcome]:
        """Outcomes with what they owe."""
        if Owing not in map(type, outcomes):  # as nearly always
            return cast("list[StoreOutcome]", outcomes)
        owing = [each for each in outcomes if isinstance(each, Owing)]
        await self._wait_for_room(sum(each.owed.size_bytes for each in owing))
        return [
            claiming.with_large(each.wire, await self._large_or_none(each.owed))
            if isinstance(each, Owing)
            else each
            for each in outcomes
        ]

    async def _large_or_none(self, owed: Owed) -> bytes | None:
        """The same, None too where it cannot be read: what was stored is told in any case."""
        try:
            return await self._large(owed)
        except DomainError:
            return None

    async def _whole(self, shown: Shown) -> group_pb2.GroupMeta:
        """The group with what it owes. Raises GroupNotFound if it is gone by now."""
        if shown.owed is not None:
            await self._wait_for_room(shown.owed.size_bytes)
            large = await self._large(shown.owed)
            if large is None:
                raise GroupNotFound(shown.owed.group_id)
            shown.meta.MergeFromString(large)
        return shown.meta

    async def _wait_for_room(self, size_bytes: int) -> None:
        """Once for an answer. Of a thousand small calls few are to hold what they are answered."""
        if size_bytes > _AT_ONCE_BYTES and self.make_room is not None:
            await self.make_room()

    async def _large(self, owed: Owed) -> bytes | None:
        """What an answer owes, read when its commit is over; None if the group's run is."""
        if owed.size_bytes > _AT_ONCE_BYTES:
            async with self._turn:  # others have the event loop before
                await asyncio.sleep(0)
        return self._read(lambda view: group_payloads.large(view, owed))

    async def get(
        self, namespace: str, task_ids: Sequence[str], *, budget_bytes: int | None = None
    ) -> list[Record]:
        def operation(view: View) -> list[Record]:
            where = self._known(view, namespace)
            found: list[Record] = []
            size_bytes = 0
            for task_id in task_ids:
                if budget_bytes is not None and size_bytes > budget_bytes:
                    break
                found.append(records.read(view, where, task_id))
                size_bytes += len(found[-1].wire)
            return found

        return self._read(operation)

    async def delete(self, namespace: str, task_ids: Sequence[str]) -> int:
        left = list(task_ids)

        def operation(unit: Unit) -> tuple[int, int]:
            where = self._there(unit, namespace)
            forgotten = done = 0
            for task_id in left:
                forgotten += records.forget(unit, where, task_id)
                done += 1
                if unit.exhausted:
                    break
            return forgotten, done

        forgotten = 0
        while True:
            more, done = await self._write(operation, grows=False, size_bytes=_size_of(left))
            forgotten += more
            del left[:done]
            if not left:
                return forgotten
            await asyncio.sleep(0)  # as between the pieces of a batch

    async def revoke(
        self, namespace: str, wishes: Sequence[worker_service_pb2.Revocation]
    ) -> list[int]:
        def operation(unit: Unit) -> list[int]:
            where = self._wanted(unit, namespace)
            states = cancel.revoke(unit, where, wishes)
            self._begin_namespace(unit, where)
            return states

        states = await self._write(operation, size_bytes=sum(wish.ByteSize() for wish in wishes))
        self._revocations += len(wishes)
        return states

    async def revoked(self, namespace: str, task_ids: Sequence[str]) -> list[bytes | None]:
        def operation(view: View) -> list[bytes | None]:
            where = self._known(view, namespace)
            return [revocations.find(view, where, task_id) for task_id in task_ids]

        return self._read(operation)

    async def group_create(self, namespace: str, declared: Declaration) -> group_pb2.GroupMeta:
        def operation(unit: Unit) -> Shown:
            where = self._wanted(unit, namespace)
            shown = groups.create(unit, where, declared)
            self._begin_namespace(unit, where)
            return shown

        shown = await self._write(
            operation,
            size_bytes=declared.said.ByteSize() + _size_of(each.id for each in declared.members),
        )
        if shown.owed is not None:
            shown.meta.MergeFrom(declared.said)
        return shown.meta

    async def group_add(
        self, namespace: str, group_id: str, members: Sequence[NewMember]
    ) -> tuple[group_pb2.GroupMeta, list[int]]:
        shown, indexes = await self._write(
            lambda unit: groups.add_members(unit, self._there(unit, namespace), group_id, members),
            size_bytes=_size_of(member.id for member in members),
        )
        return await self._whole(shown), indexes

    async def group_add_to_total(
        self, namespace: str, group_id: str, delta: int, request_id: str
    ) -> group_pb2.GroupMeta:
        shown = await self._write(
            lambda unit: groups.add_to_total(
                unit, self._there(unit, namespace), group_id, delta, request_id
            )
        )
        return await self._whole(shown)

    async def group_seal(
        self, namespace: str, group_id: str, total: int | None
    ) -> group_pb2.GroupMeta:
        shown = await self._write(
            lambda unit: groups.seal(unit, self._there(unit, namespace), group_id, total)
        )
        return await self._whole(shown)

    async def group_get(
        self, namespace: str, group_id: str, *, brief: bool = False
    ) -> group_pb2.GroupMeta:
        def operation(view: View) -> Shown:
            return groups.read(view, self._known(view, namespace), group_id, brief=brief)

        while True:
            try:
                return await self._whole(self._read(operation))
            except GroupNotFound:
                continue  # it went between the two: what is there now?

    async def group_delete(self, namespace: str, group_id: str) -> bool:
        return await self._write(
            lambda unit: groups.delete(unit, self._there(unit, namespace), group_id), grows=False
        )

    async def group_claim(
        self, namespace: str, request: ClaimRequest
    ) -> group_service_pb2.ClaimGroupResponse:
        def operation(unit: Unit) -> Claimed:
            group = groups.require(unit, self._there(unit, namespace), request.group_id)
            return claiming.apply(unit, group, request)

        # Who has acted must be able to say so while the store is full, or it is done twice.
        claimed = await self._write(operation, grows=request.action not in claiming.ENDS)
        if claimed.owed is not None:
            await self._whole(Shown(claimed.answer.group, claimed.owed))
        return claimed.answer

    async def group_members(
        self, namespace: str, group_id: str, page_size: int, page_token: str
    ) -> Page:
        def operation(view: View) -> Page:
            group = groups.require(view, self._known(view, namespace), group_id)
            return listing.list_members(view, group, page_size, page_token)

        return self._read(operation)

    async def group_list(self, namespace: str, wanted: group_service_pb2.ListGroupsRequest) -> Page:
        return self._read(
            lambda view: listing.list_groups(view, self._known(view, namespace), wanted)
        )

    @functools.cached_property
    def _mark(self) -> bytes:
        """What cursors say of this store."""
        return hashlib.sha256(self.store_id.encode()).digest()[: progress.STORE_BYTES]

    async def group_step(
        self,
        namespace: str,
        group_id: str,
        cursor: Cursor,
        count_max: int = limits.FRAME_EVENTS_MAX,
    ) -> Step:
        def operation(view: View) -> Step:
            known = self._known(view, namespace)
            return progress.step(view, known, group_id, cursor, self._mark, count_max)

        return self._read(operation)

    async def scan(self, namespace: str, wanted: result_service_pb2.ListResultsRequest) -> Page:
        return self._read(
            lambda view: listing.list_results(view, self._known(view, namespace), wanted)
        )

    async def sweep(self, budget: int) -> Swept:
        def look(view: View) -> bytes | None:
            return namespaces.last_if_sound(view.txn) if expiry.anything_due(view) else None

        # Looked at first, so that a store with nothing due commits nothing.
        committed = self._read(look)
        if committed is None:
            self._damage = _Damage()
            return Swept(0, 0, 0)
        budget = self._damage.budget(budget)
        step = functools.partial(
            expiry.sweep, budget=budget, known=self._namespaces, committed=committed
        )

        def operation(unit: Unit) -> Swept:
            before = unit.expired_incomplete
            steps, expired = step(unit)
            more = steps >= budget or unit.exhausted
            return Swept(steps, expired, unit.expired_incomplete - before, more)

        try:
            swept = await self._write(operation, grows=False, size_bytes=budget * _SWEPT_BYTES)
        except RecordCorrupt as error:
            # Nothing was changed. Out of the way, so that the others go all the same.
            due = error.metadata.get("due")
            if due is not None:
                count = self._damage.met(error)
                await self._write(lambda unit: expiry.put_off(unit, due, count), grows=False)
            raise
        if not swept.more:
            self._damage = _Damage()
        return swept

    def _held(self) -> Held | None:
        """What namespaces hold; None where that cannot be looked at, or not yet."""
        try:
            return self._read(lambda view: self._census.look(view.txn))
        except DomainError:
            return None


class _Damage:
    """What the sweeper has met that cannot be read, since there was last nothing to do.

    A million entries of a namespace may lead to one row. While nothing of it could be read in
    between, twice as many are put off each time.
    """

    def __init__(self) -> None:
        self._namespace = ""
        self._count = 0
        self._before = 0

    def met(self, error: RecordCorrupt) -> int:
        """An entry led to it: of the error that `expiry.sweep` raised. How many to put off."""
        said = error.metadata
        again = said["namespace"] == self._namespace and said["like"] == "0"
        self._count = min(2 * self._count, limits.SWEEP_ROWS) if again else 1
        self._namespace, self._before = said["namespace"], int(said["before"])
        return self._count

    def budget(self, budget: int) -> int:
        """How many are to be swept next: those before it, which can be read, are not met twice."""
        before, self._before = self._before, 0
        return min(before, budget) or budget


def _size_of(ids: Iterable[str]) -> int:
    """What is to be done for ids, in bytes: short ones are as much work as others."""
    return sum(max(len(id_), _ID_BYTES_MIN) for id_ in ids)
