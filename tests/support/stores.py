"""Engines with a clock that tests set, and short verbs for what is done to them.

async def test_something(store: Store) -> None:
    await store.report("t1", "FAILURE", group="g", index=0)
    store.clock.advance(HOUR_MS)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from resultd.v1 import group_pb2, group_service_pb2, state_pb2, stream_pb2, task_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import worker_service_pb2 as worker_pb
from resultd_server.engine.base import Engine, Swept
from resultd_server.engine.journaled import JournaledEngine
from resultd_server.engine.lmdb import LmdbEngine
from resultd_server.engine.memory import MemoryEngine
from resultd_server.errors import DomainError
from resultd_server.ledger import keys
from resultd_server.ledger.claiming import ClaimRequest
from resultd_server.ledger.groups import Declaration, NewMember
from resultd_server.ledger.progress import AS_COMPLETED, Cursor, Step
from resultd_server.ledger.records import Report, report_of
from tests.support.frames import events_of

SECOND_MS = 1_000
HOUR_MS = 3_600 * SECOND_MS
DAY_MS = 24 * HOUR_MS
MAP_BYTES = 256 * 1024 * 1024
NEVER = 0
"""A time to live: none."""

ENGINES = ("memory", "lmdb", "journaled")


class Clock:
    """Milliseconds since 1970, at a standstill until told otherwise."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        """What time it is."""
        return self.now_ms

    def advance(self, by_ms: int) -> None:
        """Lets time go by."""
        self.now_ms += by_ms


def make_engine(name: str, clock: Clock, directory: Path, **settings: Any) -> Engine:
    """An engine that is not started yet. The disk is not waited for unless asked."""
    if name == "memory":
        return MemoryEngine(clock)
    kind = JournaledEngine if name == "journaled" else LmdbEngine
    return kind(clock, directory, **{"max_db_bytes": MAP_BYTES, "sync": False, **settings})


def task(id_: str, index: int | None = None) -> NewMember:
    """A task as a member."""
    return NewMember(keys.TASK, id_, index)


def group(id_: str, index: int | None = None) -> NewMember:
    """A group as a member."""
    return NewMember(keys.GROUP, id_, index)


def make_report(
    task_id: str,
    state: str = "SUCCESS",
    value: bytes = b"1",
    *,
    attempt: int = 0,
    group: str = "",
    index: int | None = None,
    ttl_ms: int = DAY_MS,
    scope: str = "",
    claim: str = "",
    **fields: Any,
) -> Report:
    """A report as it arrives validated. What failed carries `value` as its message.

    `claim`: the token under which it asks for the claim on its group.
    """
    meta = task_pb2.TaskMeta(
        task_id=task_id, attempt=attempt, group_id=group, index=index, **fields
    )
    meta.state = state_pb2.State.Value(f"STATE_{state}")
    if state in ("FAILURE", "REVOKED", "RETRY", "REJECTED"):
        meta.failure.message = value.decode()
    else:
        meta.value.data = value
    wanted = asking(group, claim) if claim else None
    return report_of(meta, ttl_ms, scope, claim=wanted)


def asking(
    group_id: str, token: str, action: str = "ACQUIRE", lease_ms: int = 30_000
) -> ClaimRequest:
    """What is asked about a claim."""
    said = group_service_pb2.ClaimAction.Value(f"CLAIM_ACTION_{action}")
    return ClaimRequest(group_id, said, token, f"holder of {token}", lease_ms)


class Store:
    """An engine, its clock and one namespace."""

    def __init__(self, engine: Engine, clock: Clock, namespace: str = "default") -> None:
        self.engine = engine
        self.clock = clock
        self.namespace = namespace

    async def report(
        self, task_id: str, state: str = "SUCCESS", value: bytes = b"1", **said: Any
    ) -> pb.StoreResultResponse:
        """Stores one report. Raises DomainError where it is refused."""
        (outcome,) = await self.put([make_report(task_id, state, value, **said)])
        if isinstance(outcome, DomainError):
            raise outcome
        return outcome

    async def put(self, reports: list[Report]) -> list[pb.StoreResultResponse | DomainError]:
        """Stores several."""
        return [
            pb.StoreResultResponse.FromString(outcome) if isinstance(outcome, bytes) else outcome
            for outcome in await self.engine.put(self.namespace, reports)
        ]

    async def meta(self, task_id: str) -> task_pb2.TaskMeta:
        """The record, or what is said of its absence."""
        (record,) = await self.engine.get(self.namespace, [task_id])
        meta = task_pb2.TaskMeta.FromString(record.wire)
        assert (record.existence, record.version, record.state) == (
            meta.existence,
            meta.version,
            meta.state,
        )
        return meta

    async def state(self, task_id: str) -> str:
        """The record's state, or why there is none."""
        meta = await self.meta(task_id)
        if meta.existence == state_pb2.EXISTENCE_KNOWN:
            return state_pb2.State.Name(meta.state).removeprefix("STATE_")
        return state_pb2.Existence.Name(meta.existence).removeprefix("EXISTENCE_")

    async def forget(self, *task_ids: str) -> int:
        """Forgets records."""
        return await self.engine.delete(self.namespace, task_ids)

    async def revoke(self, *task_ids: str, **said: Any) -> list[int]:
        """Asks tasks to stop."""
        wishes = [worker_pb.Revocation(task_id=task_id, **said) for task_id in task_ids]
        return await self.engine.revoke(self.namespace, wishes)

    async def create(
        self,
        group_id: str,
        *members: NewMember,
        seal: bool = False,
        new_epoch: bool = False,
        ttl_ms: int = DAY_MS,
        scope: str = "",
        continuation: bytes = b"",
    ) -> group_pb2.GroupMeta:
        """Declares a group."""
        said = group_pb2.GroupMeta(claim_scope=scope)
        if continuation:
            said.continuation.data = continuation
        return await self.engine.group_create(
            self.namespace, Declaration(group_id, members, said, ttl_ms, seal, new_epoch)
        )

    async def add(self, group_id: str, *members: NewMember) -> list[int]:
        """Adds members; their indexes."""
        return (await self.engine.group_add(self.namespace, group_id, members))[1]

    async def seal(self, group_id: str, total: int | None = None) -> group_pb2.GroupMeta:
        """Seals a group."""
        return await self.engine.group_seal(self.namespace, group_id, total)

    async def add_to_total(self, group_id: str, delta: int, request_id: str) -> None:
        """Raises the number expected."""
        await self.engine.group_add_to_total(self.namespace, group_id, delta, request_id)

    async def group(self, group_id: str) -> group_pb2.GroupMeta:
        """The group, or what is said of its absence."""
        return await self.engine.group_get(self.namespace, group_id)

    async def counts(self, group_id: str) -> dict[str, int]:
        """The group's numbers that are not zero."""
        counts = (await self.group(group_id)).counts
        return {field.name: int(number) for field, number in counts.ListFields()}

    async def outcome(self, group_id: str) -> str:
        """What the group counts as: SUCCESS, FAILURE, or UNSPECIFIED before it is complete."""
        return state_pb2.State.Name((await self.group(group_id)).outcome).removeprefix("STATE_")

    async def existence(self, group_id: str) -> str:
        """Whether there is such a group."""
        found = (await self.group(group_id)).existence
        return state_pb2.Existence.Name(found).removeprefix("EXISTENCE_")

    async def delete_group(self, group_id: str) -> bool:
        """Deletes a group."""
        return await self.engine.group_delete(self.namespace, group_id)

    async def members(self, group_id: str) -> list[group_pb2.GroupMember]:
        """Every member by index."""
        token, found = "", []
        while True:
            page = await self.engine.group_members(self.namespace, group_id, 3, token)
            found += [group_pb2.GroupMember.FromString(row) for row in page.rows]
            token = page.next_token
            if not token:
                return found

    async def claim(
        self, group_id: str, token: str, action: str = "ACQUIRE", lease_ms: int = 30_000
    ) -> str:
        """Asks for a claim; the outcome's name."""
        answer = await self.engine.group_claim(
            self.namespace, asking(group_id, token, action, lease_ms)
        )
        return claim_outcome(answer)

    async def step(self, group_id: str, cursor: Cursor | None = None) -> Step:
        """The next frame of a stream over the group."""
        return await self.engine.group_step(
            self.namespace, group_id, cursor or Cursor(AS_COMPLETED)
        )

    async def events(self, group_id: str, order: int = AS_COMPLETED) -> list[stream_pb2.Event]:
        """Everything a stream over the group would send now."""
        cursor, found = Cursor(order), []
        while True:
            step = await self.step(group_id, cursor)
            found += events_of(step.events)
            cursor = step.cursor
            if not step.more:
                return found

    async def log(self, group_id: str) -> list[str]:
        """Who stands in the completion log; asserts that it is dense from 1."""
        events = await self.events(group_id)
        assert [event.position for event in events] == list(range(1, len(events) + 1))
        return [event.task.task_id or event.group.group_id for event in events]

    async def sweep(self, budget: int = 100) -> Swept:
        """Sweeps until there is nothing to do; the sums."""
        sums = Swept(0, 0, 0)
        while (swept := await self.engine.sweep(budget)).steps:
            steps, expired, incomplete = map(sum, zip(sums[:3], swept[:3], strict=True))
            sums = Swept(steps, expired, incomplete)
        return sums


@asynccontextmanager
async def opened(clock: Clock, directory: Path, **settings: Any) -> AsyncIterator[Store]:
    """A store of LMDB alone in a directory, synced to disk unless told otherwise."""
    engine = LmdbEngine(clock, directory, **{"max_db_bytes": MAP_BYTES, **settings})
    await engine.start()
    try:
        yield Store(engine, clock)
    finally:
        await engine.close()


@asynccontextmanager
async def restarted(name: str, clock: Clock, directory: Path) -> AsyncIterator[Store]:
    """A store that is there or begins, of an engine by its name; in LMDB whole afterwards."""
    engine = make_engine(name, clock, directory)
    await engine.start()
    try:
        yield Store(engine, clock)
    finally:
        await engine.close()


def disposition(answer: pb.StoreResultResponse) -> str:
    """APPLIED, DUPLICATE or SUPERSEDED."""
    return pb.Disposition.Name(answer.disposition).removeprefix("DISPOSITION_")


def membership(answer: pb.StoreResultResponse) -> str:
    """The answer's word: COUNTED, ALREADY, PENDING …."""
    return pb.Membership.Name(answer.membership).removeprefix("MEMBERSHIP_")


def claim_outcome(answer: group_service_pb2.ClaimGroupResponse) -> str:
    """GRANTED, HELD, DONE …; UNSPECIFIED where nothing is said of a claim."""
    return group_service_pb2.ClaimOutcome.Name(answer.outcome).removeprefix("CLAIM_OUTCOME_")


def ids(metas: Iterable[bytes]) -> list[str]:
    """The task ids of serialized records."""
    return [task_pb2.TaskMeta.FromString(meta).task_id for meta in metas]


@pytest.fixture
def clock() -> Clock:
    """The clock of the test's engine."""
    return Clock()


@pytest.fixture(params=ENGINES)
async def store(
    request: pytest.FixtureRequest, clock: Clock, tmp_path: Path
) -> AsyncIterator[Store]:
    """Every engine in turn, started and empty."""
    engine = make_engine(request.param, clock, tmp_path / "store")
    await engine.start()
    yield Store(engine, clock)
    await engine.close()
