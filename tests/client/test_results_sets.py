"""`ResultSet` and `GroupResult` as a blocking program uses them."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import resultd
from resultd import _effects
from resultd.client import Client
from resultd.results import GroupResult, ResultSet
from tests.support.results import failed, later

NewId = Callable[[], str]


class TestSets:
    @pytest.fixture
    def three(self, client: Client, new_id: NewId) -> ResultSet:
        """Three pending results."""
        return client.ResultSet([client.AsyncResult(new_id()) for _ in range(3)])

    def test_membership(self, client: Client) -> None:
        """add, remove, discard, update, clear, as a list without repeats."""
        one, two = client.AsyncResult("1"), client.AsyncResult("2")
        results = ResultSet([one], app=client)
        results.add(one)
        results.update([one, two])
        assert list(results) == [one, two]
        assert (len(results), results[1]) == (2, two)
        results.remove("1")
        results.discard("1")
        with pytest.raises(KeyError):
            results.remove("1")
        assert results == client.ResultSet([two])
        assert repr(results) == "<ResultSet: [2]>"
        results.clear()
        with pytest.raises(TypeError):
            hash(results)
        with pytest.raises(TypeError):
            ResultSet()  # type: ignore[call-arg]  # the mistake it is about

    def test_an_empty_set(self, client: Client) -> None:
        """Is ready and successful, has nothing and waits for nothing."""
        empty = client.ResultSet([])
        assert (empty.ready(), empty.successful(), empty.failed(), empty.waiting()) == (
            True,
            True,
            False,
            False,
        )
        assert (empty.get(), empty.join(), empty.completed_count()) == ([], [], 0)
        assert list(empty.iterate()) == list(empty.iter_native()) == []
        assert empty.supports_native_join is None
        empty.forget()
        empty.revoke()

    def test_asking_follows_the_tasks(self, client: Client, three: ResultSet) -> None:
        """ready, waiting, successful, failed and completed_count."""
        client.store_result(three[0].id, 1)
        failed(client, three[1].id, ValueError())
        assert (three.ready(), three.waiting(), three.failed()) == (False, True, True)
        assert (three.successful(), three.completed_count()) == (False, 1)
        client.store_result(three[2].id, 3)
        assert (three.ready(), three.waiting(), three.completed_count()) == (True, False, 2)
        with pytest.raises(ValueError):  # noqa: PT011 (the task's own)
            three.maybe_throw()

    def test_get_gives_the_sets_order(self, client: Client, three: ResultSet) -> None:
        """Whatever the order of completion; a repeat has its value twice."""
        three.results.append(three[0])
        later(0.05, lambda: [client.store_result(r.id, r.id) for r in reversed(three.results[:3])])
        ids = [r.id for r in three]
        assert three.get(timeout=5) == ids
        assert three.join(timeout=5) == ids

    def test_callbacks_change_what_is_returned(self, client: Client, three: ResultSet) -> None:
        """None from join_native, [] from join, which calls in order."""
        called: list[Any] = []
        later(0.05, lambda: [client.store_result(r.id, r.id) for r in reversed(three.results)])
        assert three.get(timeout=5, callback=lambda i, v: called.append(i)) is None
        ids = [r.id for r in three]
        assert sorted(called) == sorted(ids)
        called.clear()
        assert three.join(callback=lambda i, v: called.append(i)) == []
        assert called == ids

    def test_join_with_timeout_zero_looks_once(self, client: Client, three: ResultSet) -> None:
        """As get does: what is there is returned."""
        client.store_results([(r.id, r.id) for r in three])
        assert three.join(timeout=0) == [r.id for r in three]

    def test_forgetting_in_a_callback_loses_no_value(
        self, client: Client, three: ResultSet
    ) -> None:
        """What has arrived is given, forgotten or not; the others still come."""
        client.store_results([(r.id, r.id) for r in three])
        called: list[Any] = []

        def forget(_: str, value: object) -> None:
            called.append(value)
            three.forget()

        assert three.join(timeout=5, callback=forget) == []
        assert called == [r.id for r in three]

    def test_a_failure_is_raised_as_soon_as_it_arrives(
        self, client: Client, three: ResultSet
    ) -> None:
        """By get; by join when its turn comes; by neither without propagate."""
        later(0.05, lambda: failed(client, three[2].id, ValueError("third")))
        with pytest.raises(ValueError, match="third"):
            three.get(timeout=5)
        with pytest.raises(TimeoutError):
            three.join(timeout=0.05)
        client.store_results([(r.id, 1) for r in three.results[:2]])
        values = three.get(timeout=5, propagate=False)
        assert values[:2] == [1, 1]
        assert isinstance(values[2], ValueError)
        with pytest.raises(ValueError, match="third"):
            three.join(timeout=5)

    def test_values_are_iterated_as_they_complete(self, client: Client, three: ResultSet) -> None:
        """One after the other, each when it is there."""
        values = three.iterate(timeout=5)
        for index in (2, 0, 1):
            client.store_result(three[index].id, index)
            assert next(values) == index
        assert list(values) == []
        metas = dict(three.iter_native())
        assert [metas[r.id]["result"] for r in three] == [0, 1, 2]

    def test_iterating_times_out(self, client: Client, three: ResultSet) -> None:
        """After what was there."""
        client.store_result(three[0].id, 1)
        values = three.iterate(timeout=0.1)
        assert next(values) == 1
        with pytest.raises(TimeoutError):
            next(values)

    def test_on_message_and_on_interval_work_in_sets(
        self, client: Client, three: ResultSet
    ) -> None:
        """Each state of each task, in join too."""
        seen: list[tuple[str, str]] = []
        ticks: list[int] = []
        client.store_results([(r.id, None, "STARTED") for r in three])
        later(0.1, lambda: client.store_results([(r.id, 1) for r in three]))
        three.join(
            timeout=5,
            interval=0.02,
            on_message=lambda m: seen.append((m["task_id"], m["status"])),
            on_interval=lambda: ticks.append(1),
        )
        assert sorted(seen) == sorted((r.id, s) for r in three for s in ("STARTED", "SUCCESS"))
        assert ticks

    def test_an_interval_may_be_none(self, client: Client, three: ResultSet) -> None:
        """As Celery takes it, wherever one is named."""
        ids = [r.id for r in three]
        client.store_results([(i, i) for i in ids])
        assert client.AsyncResult(ids[0]).get(timeout=5, interval=None) == ids[0]
        assert three.get(timeout=5, interval=None) == ids
        assert three.join(timeout=5, interval=None) == ids
        assert three.join_native(timeout=5, interval=None) == ids
        assert sorted(three.iterate(timeout=5, interval=None)) == ids
        assert len(list(three.iter_native(timeout=5, interval=None))) == 3

    def test_forget_and_revoke_go_to_all(self, client: Client, three: ResultSet) -> None:
        """In one call each."""
        three.revoke(wait=True, timeout=5)
        assert [r.state for r in three] == ["REVOKED"] * 3
        three.forget()
        assert [r.exists() for r in three] == [False] * 3

    def test_nested_sets_are_values_of_their_own(self, client: Client, new_id: NewId) -> None:
        """A list where they stand; iter_native gives their id and results."""
        ids = [new_id() for _ in range(3)]
        inner = client.GroupResult(new_id(), [client.AsyncResult(i) for i in ids[1:]])
        outer = client.ResultSet([client.AsyncResult(ids[0]), inner, client.GroupResult("e", [])])
        later(0.05, lambda: client.store_results([(i, i) for i in ids]))
        assert outer.get(timeout=5) == [ids[0], ids[1:], []]
        assert dict(outer.iter_native())[inner.id] == inner.results
        assert outer.completed_count() == 3
        assert outer.join() == [ids[0], ids[1:], []]

    def test_eager_results_stand_among_others(self, client: Client, new_id: NewId) -> None:
        """They are ready."""
        result = client.AsyncResult(new_id())
        client.store_result(result.id, 2)
        mixed = ResultSet([resultd.EagerResult("e", 1, "SUCCESS"), result], app=client)
        assert mixed.get(timeout=5) == [1, 2]
        mixed.forget()

    def test_the_app_is_the_first_results(self, client: Client) -> None:
        """Unless one is given; it may be assigned."""
        results = ResultSet([client.AsyncResult("x")])
        assert results.app is client
        assert results.backend is client
        results.app = None
        assert results.app is client


Hear = Callable[[str, Any], None]


def _by_iterate(results: ResultSet, hear: Hear) -> None:
    for value in results.iterate(timeout=5):
        hear(value, value)


def _by_iter_native(results: ResultSet, hear: Hear) -> None:
    for task_id, meta in results.iter_native(timeout=5):
        hear(task_id, meta["result"])


WAYS: Mapping[str, Callable[[ResultSet, Hear], object]] = {
    "get": lambda results, hear: results.get(timeout=5, callback=hear),
    "join": lambda results, hear: results.join(timeout=5, callback=hear),
    "iterate": _by_iterate,
    "iter_native": _by_iter_native,
}
CHANGES: Mapping[str, Callable[[ResultSet, str], object]] = {
    "the first goes": lambda results, _: results.results and results.results.pop(0),
    "all go": lambda results, _: results.clear(),
    "one comes": lambda results, other: results.add(results.backend.AsyncResult(other)),
    "one comes first": lambda results, other: results.results.insert(
        0, results.backend.AsyncResult(other)
    ),
}


def in_turn(*steps: Callable[[], object]) -> Callable[[], None]:
    """Return what takes one step each time it is called, and none when all are done."""
    left = iter(steps)

    def step() -> None:
        for each in itertools.islice(left, 1):
            each()

    return step


class TestChangedWhileWaitedFor:
    @pytest.fixture
    def three(self, client: Client, new_id: NewId) -> ResultSet:
        """Three results whose values are their ids, once stored."""
        return client.ResultSet([client.AsyncResult(new_id()) for _ in range(3)])

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("way", WAYS)
    def test_by_a_callback(
        self, client: Client, three: ResultSet, new_id: NewId, way: str, change: str
    ) -> None:
        """Each value that was in the set is given, once, and none else."""
        ids = [r.id for r in three]
        client.store_results([(i, i) for i in ids])
        heard: list[Any] = []

        def hear(_: str, value: object) -> None:
            heard.append(value)
            CHANGES[change](three, new_id())

        WAYS[way](three, hear)
        assert sorted(heard) == sorted(ids)

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("name", ["get", "join"])
    def test_before_anything_is_ready(
        self, client: Client, three: ResultSet, new_id: NewId, name: str, change: str
    ) -> None:
        """The values come in the order that the set had."""
        ids = [r.id for r in three]
        tick = in_turn(
            lambda: CHANGES[change](three, new_id()),
            lambda: client.store_results([(i, i) for i in reversed(ids)]),
        )
        values = getattr(three, name)(timeout=5, interval=0.01, on_interval=tick)
        assert values == ids

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("name", ["get", "join", "iter_native"])
    def test_in_a_nested_set(self, client: Client, new_id: NewId, name: str, change: str) -> None:
        """It is what it was, wherever it stands."""
        ids = [new_id() for _ in range(3)]
        inner = client.GroupResult(new_id(), [client.AsyncResult(i) for i in ids[1:]])
        outer = client.GroupResult(new_id(), [client.AsyncResult(ids[0]), inner])
        tick = in_turn(
            lambda: CHANGES[change](inner, new_id()),
            lambda: client.store_results([(i, i) for i in ids]),
        )
        found = getattr(outer, name)(timeout=5, interval=0.01, on_interval=tick)
        if name == "iter_native":
            assert dict(found)[inner.id] == ids[1:]
        else:
            assert found == [ids[0], ids[1:]]

    @pytest.mark.parametrize("change", CHANGES)
    def test_while_it_is_read(
        self, client: Client, three: ResultSet, new_id: NewId, change: str
    ) -> None:
        """What is counted and said is of what was in it when it was asked."""
        ids = [r.id for r in three]
        client.store_results([(i, i) for i in ids])

        def handle(effect: _effects.Effect) -> Any:
            outcome = client._handle(effect)
            CHANGES[change](results, new_id())
            return outcome

        for op, told in ((ResultSet._is_ready, True), (ResultSet._is_successful, True)):
            results = client.ResultSet(map(client.AsyncResult, ids))
            assert _effects.run(op(results), handle) is told
        results = client.ResultSet(map(client.AsyncResult, ids))
        assert _effects.run(results._completed(), handle) == 3
        results = client.ResultSet(map(client.AsyncResult, ids))
        seen: list[str] = []
        _effects.run(results._maybe_throw(lambda i, _: seen.append(i), True), handle)
        assert seen == ids

    def test_while_it_is_saved(self, client: Client, new_id: NewId) -> None:
        """What is kept is what it held when that began, and the parents are those of that."""
        parent, child = client.AsyncResult(new_id()), client.AsyncResult(new_id())
        child.parent = parent
        inner = client.GroupResult(new_id(), [client.AsyncResult(new_id())])
        group = client.GroupResult(new_id(), [child, inner])
        before = group.as_tuple()

        def handle(effect: _effects.Effect) -> Any:
            group.clear()
            return client._handle(effect)

        _effects.run(client.groups.save(group), handle)
        back = client.restore_group(group.id)
        assert back is not None
        assert back.as_tuple() == before


class TestGroups:
    @pytest.fixture
    def group(self, client: Client, new_id: NewId) -> GroupResult:
        """A group of three."""
        return client.GroupResult(new_id(), [client.AsyncResult(new_id()) for _ in range(3)])

    def test_a_saved_group_is_restored(self, client: Client, group: GroupResult) -> None:
        """With its members in order; one never saved is None; delete() undoes save()."""
        assert client.restore_group(group.id) is None
        assert group.save() is group
        back = GroupResult.restore(group.id, backend=client)
        assert back == group
        client.store_results([(r.id, n) for n, r in enumerate(group)])
        assert back.get(timeout=5) == [0, 1, 2]
        group.save()
        back.delete()
        assert client.restore_group(group.id) is None
        assert group[0].exists()

    def test_structure_and_parents_survive(
        self, client: Client, group: GroupResult, new_id: NewId
    ) -> None:
        """Nested groups, the group's parent, the parents of members."""
        child = client.AsyncResult(new_id(), parent=client.AsyncResult("grandparent"))
        outer = client.GroupResult(new_id(), [child, group], parent=client.AsyncResult("parent"))
        outer.save()
        back = client.restore_group(outer.id)
        assert back is not None
        assert back.as_tuple() == outer.as_tuple()

    def test_saving_again_with_other_members_replaces(
        self, client: Client, group: GroupResult, new_id: NewId
    ) -> None:
        """More, fewer, or others at the same places."""
        group.save()
        group.add(client.AsyncResult(new_id()))
        for change in (group.results[:], group.results[:2], [client.AsyncResult(new_id())]):
            group.results[:] = change
            group.save()
            assert client.restore_group(group.id) == group

    def test_identity(self, client: Client, group: GroupResult) -> None:
        """By id, results and parent; truthy with either; pickled without parent, as Celery."""
        same = client.GroupResult(group.id, list(group))
        assert same == group == group.id
        assert hash(same) == hash(group.id)
        same.parent = client.AsyncResult("p")
        assert same != group
        assert bool(group)
        assert not client.GroupResult(None, [])
        assert str(group) == group.id
        assert repr(group) == f"<GroupResult: {group.id} [{', '.join(r.id for r in group)}]>"
        assert group.children is group.results
        back = pickle.loads(pickle.dumps(same))
        assert back.id == group.id
        assert back.parent is None
        assert group != 1

    def test_only_what_has_ids_can_be_saved(self, client: Client, new_id: NewId) -> None:
        """A group without id, or with a set in it, cannot."""
        with pytest.raises(ValueError, match="needs an id"):
            client.GroupResult(None, [client.AsyncResult("x")]).save()
        with pytest.raises(TypeError, match="have ids"):
            client.GroupResult(new_id(), [client.ResultSet([])]).save()

    def test_a_saved_group_streams(self, client: Client, group: GroupResult) -> None:
        """Values as members complete."""
        group.save()
        later(0.05, lambda: client.store_results([(r.id, n) for n, r in enumerate(group)]))
        assert sorted(group.iterate(timeout=5)) == [0, 1, 2]
        assert group.join_native() == [0, 1, 2]
