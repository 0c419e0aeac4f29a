"""Records and groups against a model in dicts, over random histories, on every engine.

RESULTD_MODEL_EXAMPLES=2000 pytest tests/server/ledger/test_model.py    a longer search
RESULTD_MODEL_SHRINK=1 pytest tests/server/ledger/test_model.py         a shorter history
"""

from __future__ import annotations

import asyncio
import copy
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from resultd.v1 import state_pb2
from resultd_server.errors import DomainError, GroupConflict, GroupNesting, GroupSealed
from resultd_server.ledger import keys
from resultd_server.ledger.txn import Db
from tests.support.model import GONE, HOUR_MS, TERMINAL, Model
from tests.support.stored import broken_in, rows_of, usage_of
from tests.support.stores import (
    ENGINES,
    Clock,
    Store,
    claim_outcome,
    disposition,
    group,
    make_engine,
    membership,
    task,
)

EXAMPLES = int(os.environ.get("RESULTD_MODEL_EXAMPLES", "100"))
SHRINK = bool(os.environ.get("RESULTD_MODEL_SHRINK"))

TASKS = st.sampled_from(["t1", "t2", "t3", "t4"])
GROUPS = st.sampled_from(["g1", "g2", "g3"])
STATES = st.sampled_from(
    [*("RECEIVED", "STARTED", "PROGRESS", "RETRY"), *("SUCCESS", "FAILURE", "REVOKED", "IGNORED")]
)
MEMBERS = st.lists(
    st.tuples(
        st.tuples(st.just("task"), TASKS) | st.tuples(st.just("group"), GROUPS),
        st.none() | st.integers(0, 6),
    ),
    max_size=4,
)
LIVES_MS = st.sampled_from([HOUR_MS // 2, HOUR_MS, 5 * HOUR_MS])


class Machine(RuleBasedStateMachine):
    """The same history for the model and for an engine."""

    engine_name: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="resultd-model-"))
        self.loop = asyncio.new_event_loop()
        self.model = Model()
        self.clock = Clock()
        self.model.now_ms = self.clock.now_ms
        self.seen_versions: dict[str, int] = {}
        self.logs: dict[tuple[str, int], list[tuple[int, bool]]] = {}
        self.said: dict[tuple[str, int], bytes] = {}
        engine = make_engine(self.engine_name, self.clock, self.directory)
        self.run(engine.start())
        self.store = Store(engine, self.clock)

    def teardown(self) -> None:
        """Forgets and closes everything; its rows fit one another, and then there are none."""
        broken = broken_in(self.store.engine)
        self.run(self.store.forget("t1", "t2", "t3", "t4"))
        for group_id in ("g1", "g2", "g3"):
            self.run(self.store.delete_group(group_id))
        self.clock.advance(25 * HOUR_MS)
        self.run(self.store.sweep())
        left = [db for db in Db if rows_of(self.store.engine, db)]
        self.run(self.store.engine.close())
        self.loop.close()
        shutil.rmtree(self.directory)
        assert broken == []
        assert set(left) <= {Db.META, Db.NAMESPACES}

    def run(self, work: Any) -> Any:
        """Runs a coroutine to its end."""
        return self.loop.run_until_complete(work)

    def refused(self, work: Any, *reasons: type[DomainError]) -> bool:
        """Whether it raises one of these."""
        try:
            self.run(work)
        except reasons:
            return True
        return False

    # What is done.

    @rule(
        id_=TASKS,
        state=STATES,
        attempt=st.integers(0, 3),
        content=st.sampled_from([b"1", b"2"]),
        ttl_ms=LIVES_MS,
        place=st.none() | st.tuples(GROUPS, st.none() | st.integers(0, 6)),
        token=st.sampled_from(["", "a", "b"]),
        done_s=st.sampled_from([None, None, 1, 2]),
    )
    def report(
        self,
        id_: str,
        state: str,
        attempt: int,
        content: bytes,
        ttl_ms: int,
        place: tuple[str, int | None] | None,
        token: str,
        done_s: int | None,
    ) -> None:
        """A report has the model's disposition, version, membership, and outcome of its claim."""
        group_id, index = place or ("", None)
        claim = token if place else ""
        how: dict[str, Any] = {"group": group_id, "index": index, "claim": claim}
        if done_s is not None:
            how["done_time"] = Timestamp(seconds=done_s)
        answer = self.run(
            self.store.report(id_, state, content, attempt=attempt, ttl_ms=ttl_ms, **how)
        )
        said = self.model.report(id_, state, attempt, content, ttl_ms, group_id, index, done_s)
        assert (disposition(answer), answer.version, membership(answer)) == said
        record = self.model.tasks.get(id_)
        ended = record is None or record.state in TERMINAL
        assert set(answer.complete_group_ids) == {
            name
            for name, found in self.model.groups.items()
            if ended
            and found.complete
            and not found.done
            and ("task", id_) in found.members.values()
        }
        named = self.model.groups.get(group_id)
        members = named.members.values() if named is not None and named.complete else ()
        if claim and ended and ("task", id_) in members:
            outcome = self.model.claim(group_id, claim, "ACQUIRE", 30_000)
            assert claim_outcome(answer.claim) == outcome
        else:
            assert not answer.HasField("claim")

    @rule(id_=TASKS)
    def forget(self, id_: str) -> None:
        """Forgetting answers whether there was a record."""
        assert self.run(self.store.forget(id_)) == self.model.forget(id_)

    @rule(id_=TASKS)
    def revoke(self, id_: str) -> None:
        """What nobody started is REVOKED at once."""
        (state,) = self.run(self.store.revoke(id_, reason="revoked by request"))
        said = self.model.revoke(id_)
        assert state_pb2.State.Name(state).removeprefix("STATE_") == (said or "UNSPECIFIED")

    @rule(
        group_id=GROUPS,
        members=MEMBERS,
        ttl_ms=LIVES_MS,
        new_epoch=st.booleans(),
        then=st.sampled_from([b"", b"then", b"then" * 2_000]),
    )
    def create(
        self, group_id: str, members: list[Any], ttl_ms: int, new_epoch: bool, then: bytes
    ) -> None:
        """A group is declared, or refused whole."""
        trial = self.copy()
        there = trial.groups.get(group_id)
        if there is not None and not new_epoch and (there.complete or there.declared is not None):
            then = self.said.get((group_id, there.epoch), b"")
        work = self.store.create(
            group_id,
            *map(new_member, members),
            ttl_ms=ttl_ms,
            new_epoch=new_epoch,
            continuation=then,
        )
        if there is None:
            trial.start(group_id, ttl_ms)
        elif new_epoch:
            trial.start(group_id, ttl_ms, there.epoch + 1)
        else:
            there.ttl_ms = ttl_ms
            trial.touch(there)
        accepted = trial.add(group_id, members) is not None
        assert self.refused(work, GroupConflict, GroupSealed, GroupNesting) == (not accepted)
        if accepted:
            self.model = trial
            self.said[group_id, trial.groups[group_id].epoch] = then
            self.sweep()

    def copy(self) -> Model:
        """The model, to try something on."""
        return copy.deepcopy(self.model)

    @precondition(lambda self: self.model.groups)
    @rule(data=st.data(), members=MEMBERS)
    def add(self, data: st.DataObject, members: list[Any]) -> None:
        """Members get the model's indexes, or are refused together."""
        group_id = data.draw(st.sampled_from(sorted(self.model.groups)))
        said = self.model.add(group_id, members)
        work = self.store.add(group_id, *map(new_member, members))
        if said is None:
            assert self.refused(work, GroupConflict, GroupSealed, GroupNesting)
        else:
            assert self.run(work) == said

    @precondition(lambda self: self.model.groups)
    @rule(data=st.data(), total=st.none() | st.integers(0, 6))
    def seal(self, data: st.DataObject, total: int | None) -> None:
        """A total is taken if it agrees."""
        group_id = data.draw(st.sampled_from(sorted(self.model.groups)))
        accepted = self.model.seal(group_id, total)
        assert self.refused(self.store.seal(group_id, total), DomainError) == (not accepted)

    @precondition(lambda self: self.model.groups)
    @rule(data=st.data(), delta=st.integers(1, 2), request_id=st.sampled_from(["r1", "r2", "r3"]))
    def add_to_total(self, data: st.DataObject, delta: int, request_id: str) -> None:
        """A total is raised once per request."""
        group_id = data.draw(st.sampled_from(sorted(self.model.groups)))
        accepted = self.model.add_to_total(group_id, delta, request_id)
        work = self.store.add_to_total(group_id, delta, request_id)
        assert self.refused(work, GroupSealed) == (not accepted)

    @rule(group_id=GROUPS)
    def delete(self, group_id: str) -> None:
        """Deleting answers whether there was a group."""
        there = group_id in self.model.groups
        assert self.run(self.store.delete_group(group_id)) == there
        if there:
            self.model.end(group_id, "FORGOTTEN")
            self.sweep()

    @precondition(lambda self: self.model.groups)
    @rule(
        data=st.data(),
        token=st.sampled_from(["a", "b"]),
        action=st.sampled_from(["ACQUIRE", "ACQUIRE", "DONE", "RELEASE"]),
    )
    def claim(self, data: st.DataObject, token: str, action: str) -> None:
        """A claim has the model's outcome: one holder at a time."""
        group_id = data.draw(st.sampled_from(sorted(self.model.groups)))
        outcome = self.run(self.store.claim(group_id, token, action, lease_ms=60_000))
        assert outcome == self.model.claim(group_id, token, action, 60_000)

    @rule(by_ms=st.sampled_from([1, 60_000, HOUR_MS // 2, HOUR_MS, 5 * HOUR_MS]))
    def time_goes_by(self, by_ms: int) -> None:
        """Time goes by."""
        self.clock.advance(by_ms)
        self.model.now_ms += by_ms
        self.sweep()

    def sweep(self) -> None:
        """What is due goes: after time went by, and where a group keeps members no longer."""
        before = {name: len(found.counted) for name, found in self.model.groups.items()}
        self.run(self.store.sweep(7))
        self.model.sweep()
        for name, found in self.model.groups.items():
            # Groups that end in one sweep may end in any order: the store's is taken.
            order = [event.index for event in self.run(self.store.events(name))]
            told = list(found.counted)[: before[name]] + order[before[name] :]
            assert sorted(told) == sorted(found.counted)
            found.counted = {index: found.counted[index] for index in told}

    # What holds.

    @invariant()
    def records_are_the_models(self) -> None:
        """State, attempt and version of every record; of those gone, why."""
        for id_ in ("t1", "t2", "t3", "t4"):
            stored, stone = self.model.tasks.get(id_), self.model.task_stones.get(id_)
            found = self.run(self.store.meta(id_))
            if stored is None:
                said = "UNKNOWN" if stone is None else stone.existence
                assert state_pb2.Existence.Name(found.existence) == f"EXISTENCE_{said}"
                continue
            assert state_pb2.State.Name(found.state) == f"STATE_{stored.state}"
            assert (found.attempt, found.version) == (stored.attempt, stored.version)
            assert (found.value.data or found.failure.message.encode()) == stored.content

    @invariant()
    def usage_is_exact(self) -> None:
        """What the namespace is said to hold is what a recount finds; elsewhere in the end."""
        if self.engine_name == "memory":
            assert usage_of(self.store.engine)[0] >= len(self.model.tasks)

    @invariant()
    def what_expires_is_filed_once(self) -> None:
        """And nothing is filed that does not; elsewhere in the end."""
        if self.engine_name == "memory":
            filed = [keys.parse_expiry(key)[1:] for key, _ in rows_of(self.store.engine, Db.EXPIRY)]
            assert len(set(filed)) == len(filed)
            assert broken_in(self.store.engine) == []

    @invariant()
    def groups_are_the_models(self) -> None:
        """Members, counts, completeness and log of every group."""
        for group_id in ("g1", "g2", "g3"):
            said = self.model.groups.get(group_id)
            if said is None:
                # Once its tombstone is gone too, epochs begin again.
                self.logs = {run: log for run, log in self.logs.items() if run[0] != group_id}
                self.said = {run: then for run, then in self.said.items() if run[0] != group_id}
                stone = self.model.group_stones.get(group_id)
                existence = "UNKNOWN" if stone is None else stone.existence
                assert self.run(self.store.existence(group_id)) == existence
                continue
            tally = Counter(said.counted.values())
            numbers = {
                "sealed": said.declared is not None,
                "expected_total": said.expected or 0,
                "members": len(said.members),
                "done": len(said.counted),
                "succeeded": tally["SUCCESS"],
                "failed": tally["FAILURE"],
                "revoked": tally["REVOKED"],
                "ignored": tally["IGNORED"],
                "gone": tally[GONE],
                "complete": said.complete,
                "epoch": said.epoch,
            }
            counts = {name: int(number) for name, number in numbers.items() if number}
            assert self.run(self.store.counts(group_id)) == counts
            then = self.run(self.store.group(group_id)).continuation.data
            assert then == self.said.get((group_id, said.epoch), b"")
            members = self.run(self.store.members(group_id))
            assert {each.index: each.id for each in members} == {
                index: id_ for index, (_, id_) in said.members.items()
            }
            self.log_only_grows(group_id, said.epoch)
            assert dict(self.logs[group_id, said.epoch]) == {
                index: state == GONE for index, state in said.counted.items()
            }

    def log_only_grows(self, group_id: str, epoch: int) -> None:
        """Positions are 1 to n, and what was n-th stays n-th.

        One report may complete groups in groups: in which order these enter the log is
        the engine's choice, so it is not the model's.
        """
        events = self.run(self.store.events(group_id))
        assert [event.position for event in events] == list(range(1, len(events) + 1))
        before = self.logs.get((group_id, epoch), [])
        now = [(event.index, event.gone) for event in events]
        assert now[: len(before)] == before
        assert len({index for index, _ in now}) == len(now)
        self.logs[group_id, epoch] = now


def new_member(said: tuple[tuple[str, str], int | None]) -> Any:
    """A member as the engine takes it."""
    (kind, id_), index = said
    return task(id_, index) if kind == "task" else group(id_, index)


@pytest.mark.timeout(60 + EXAMPLES + 600 * SHRINK)
@pytest.mark.parametrize("name", ENGINES)
def test_every_history_ends_as_in_the_model(name: str) -> None:
    """Whatever is reported, declared, claimed, forgotten and expires: the model agrees."""

    class OnEngine(Machine):
        engine_name = name

    run_state_machine_as_test(
        OnEngine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            # Shrinking takes minutes, and the test's time is a minute: it has its own switch.
            phases=[*Phase] if SHRINK else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
