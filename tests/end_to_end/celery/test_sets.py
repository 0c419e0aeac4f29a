"""Many results at once: groups and sets, saved, counted, joined; and what hangs together."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import IncompleteStream
from celery.result import GroupResult, ResultSet

# Celery's Redis backend, when the laws are tried on that.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

TIMEOUT_S = 20.0


def test_a_group_is_saved_and_found(app: Any, other_app: Any, tasks: Any) -> None:
    """A saved group is restored by its id, also by another app, and is gone once deleted."""
    result = group(tasks.identity.s(n) for n in range(3))()
    assert GroupResult.restore(result.id, app=app) is None
    result.save()
    assert GroupResult.restore(result.id, app=app) == result
    found = other_app.GroupResult.restore(result.id, app=other_app)
    assert found.get(timeout=TIMEOUT_S) == [0, 1, 2]
    result.delete()
    assert GroupResult.restore(result.id, app=app) is None


def test_a_saved_group_keeps_its_shape(app: Any, tasks: Any) -> None:
    """A restored group has its parent, and the groups within it."""
    last = chain(tasks.identity.s(1), group(tasks.add.s(1), tasks.add.s(2)))()
    last.save()
    found = GroupResult.restore(last.id, app=app)
    assert (found.parent, found.children) == (last.parent, last.children)
    assert found.get(timeout=TIMEOUT_S) == [2, 3]
    outer = app.GroupResult(str(uuid.uuid4()), [last, tasks.identity.delay(5)]).save()
    assert GroupResult.restore(outer.id, app=app).get(timeout=TIMEOUT_S) == [[2, 3], 5]


def test_saving_again_replaces(app: Any, tasks: Any) -> None:
    """A group that is saved twice is restored as it was saved last."""
    group_id = str(uuid.uuid4())
    results = [tasks.identity.delay(n) for n in range(3)]
    app.GroupResult(group_id, results[:1]).save()
    app.GroupResult(group_id, results).save()
    assert GroupResult.restore(group_id, app=app).results == results


def test_deleting_what_is_not_saved(app: Any) -> None:
    """Deleting an unknown group does no harm."""
    app.GroupResult(str(uuid.uuid4()), []).delete()


def test_a_pickled_group(app: Any, tasks: Any) -> None:
    """A pickled group is as good as its original."""
    app.set_current()  # whose backend an unpickled result asks
    result = group(tasks.identity.s(n) for n in range(2))()
    copy = pickle.loads(pickle.dumps(result))
    assert copy.id == result.id
    assert [child.get(timeout=TIMEOUT_S) for child in copy] == [0, 1]


def test_counts_follow_the_tasks(
    app: Any,
    tasks: Any,
    key: str,
    hear: Callable[[str], str],
    say: Callable[[str], None],
) -> None:
    """A set counts successes, and tells whether any waits, all are ready, any failed."""
    running = tasks.wait_for.delay(key, "last")
    hear(f"{key}:begun")
    results = app.ResultSet([tasks.identity.delay(1), running, tasks.fail.delay("no")])
    results[0].get(timeout=TIMEOUT_S)
    results[2].get(timeout=TIMEOUT_S, propagate=False)
    assert (results.completed_count(), results.waiting(), results.ready()) == (1, True, False)
    assert (results.failed(), results.successful()) == (True, False)
    say(key)
    assert results.get(timeout=TIMEOUT_S, propagate=False)[1] == "last"
    assert (results.completed_count(), results.waiting(), results.ready()) == (2, False, True)


def test_values_come_as_they_complete(
    tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """`iter_native` and callbacks tell results as they complete, `get` in the set's order."""
    result = group(tasks.wait_for.s(key, "slow"), tasks.identity.s("quick"))()
    hear(f"{key}:begun")
    seen = []
    for task_id, meta in result.iter_native(timeout=TIMEOUT_S):
        seen.append((task_id, meta["status"], meta["result"]))
        if len(seen) == 1:
            say(key)
    slow, quick = result.results
    assert seen == [(quick.id, "SUCCESS", "quick"), (slow.id, "SUCCESS", "slow")]


def test_a_callback_is_told_of_each(tasks: Any) -> None:
    """`join_native(callback=…)` calls it with every id and value and returns nothing."""
    result = group(tasks.identity.s(n) for n in range(5))()
    seen: dict[str, int] = {}
    assert result.join_native(timeout=TIMEOUT_S, callback=seen.__setitem__) is None
    assert seen == {child.id: n for n, child in enumerate(result.results)}


def test_join_asks_one_after_the_other(tasks: Any) -> None:
    """`join` gives the values in order, a callback is called in order instead."""
    result = group(tasks.identity.s(n) for n in range(5))()
    assert result.join(timeout=TIMEOUT_S) == [0, 1, 2, 3, 4]
    seen: list[Any] = []
    assert result.join(timeout=TIMEOUT_S, callback=lambda _, value: seen.append(value)) == []
    assert seen == [0, 1, 2, 3, 4]


def test_a_set_may_hold_sets(app: Any, tasks: Any) -> None:
    """A set of groups comes to the lists of their values."""
    groups = [group(tasks.identity.s(n) for n in range(size))() for size in (1, 3)]
    results = ResultSet([*groups, tasks.identity.delay("one")], app=app)
    assert results.get(timeout=TIMEOUT_S) == [[0], [0, 1, 2], "one"]
    told = dict(results.iter_native(timeout=TIMEOUT_S))
    assert told[groups[1].id] == groups[1].children


def test_a_result_may_stand_twice_in_a_set(app: Any, tasks: Any) -> None:
    """Two results of the same task are both told."""
    first = tasks.identity.delay(1)
    again = app.AsyncResult(first.id)
    assert [r.get(timeout=TIMEOUT_S) for r in app.ResultSet([first, again])] == [1, 1]


def test_a_set_can_be_changed(app: Any, tasks: Any) -> None:
    """What is added is waited for, what is removed is not."""
    first, second = tasks.identity.delay(1), tasks.identity.delay(2)
    results = app.ResultSet([first])
    results.add(second)
    results.add(second)
    assert results.get(timeout=TIMEOUT_S) == [1, 2]
    results.remove(first)
    assert results.get(timeout=TIMEOUT_S) == [2]
    with pytest.raises(KeyError):
        results.remove(first)
    results.update([first])
    results.discard(second.id)
    assert results.results == [first]
    results.clear()
    assert len(results) == 0


@pytest.mark.usefixtures("differs_from_redis")
def test_an_empty_set_yields_nothing(app: Any) -> None:
    """An empty set is done: nothing is yielded, nothing is raised."""
    empty = app.ResultSet([])
    assert list(empty.iter_native(timeout=1)) == []
    assert empty.get(timeout=1) == []
    assert (empty.ready(), empty.successful(), empty.failed(), empty.waiting()) == (
        True,
        True,
        False,
        False,
    )


def test_forgetting_a_group_forgets_its_members(app: Any, tasks: Any) -> None:
    """`forget` of a group reaches every member."""
    result = group(tasks.identity.s(n) for n in range(3))()
    result.get(timeout=TIMEOUT_S)
    result.forget()
    assert [app.AsyncResult(child.id).state for child in result] == ["PENDING"] * 3


# What hangs together.


def test_children_are_known(app: Any, tasks: Any) -> None:
    """The tasks that a task called are its children, for whoever has its id."""
    result = tasks.spawn.delay(3)
    assert result.get(timeout=TIMEOUT_S) == 3
    children = app.AsyncResult(result.id).children
    assert [child.get(timeout=TIMEOUT_S) for child in children] == [0, 2, 4]


def test_a_leaf_has_no_children(tasks: Any) -> None:
    """A task that called nobody has no children: an empty list once it is done."""
    result = tasks.identity.delay(1)
    result.get(timeout=TIMEOUT_S)
    assert result.children == []


def test_a_retried_task_has_the_children_of_its_last_run(tasks: Any) -> None:
    """A task that was retried is no child of its own: collecting it comes to an end."""
    result = tasks.retry_until.delay(1)
    assert result.get(timeout=TIMEOUT_S) == 1
    assert result.children == []


def first_of(result: Any) -> Any:
    """The first task of a chain."""
    while result.parent is not None:
        result = result.parent
    return result


def test_a_chain_is_collected_from_its_start(tasks: Any) -> None:
    """`collect` follows the children from the first task to the last."""
    last = chain(tasks.add.s(1, 1), tasks.add.s(2), tasks.add.s(3))()
    last.get(timeout=TIMEOUT_S)
    first = first_of(last)
    assert [value for _, value in first.collect(timeout=TIMEOUT_S)] == [2, 4, 7]
    assert first.get_leaf() == 7
    assert [node.id for _, node in first.iterdeps()] == last.as_list()[::-1]


def test_a_tree_is_collected(tasks: Any) -> None:
    """`collect` gives a task and all that it called."""
    result = tasks.spawn.delay(2)
    result.get(timeout=TIMEOUT_S)
    for child in result.children:
        child.get(timeout=TIMEOUT_S)
    assert [value for _, value in result.collect(timeout=TIMEOUT_S)] == [2, 0, 2]


def test_a_graph_has_an_edge_for_each_child(tasks: Any) -> None:
    """`build_graph` knows every task and who called whom."""
    last = chain(tasks.add.s(1, 1), tasks.add.s(2))()
    last.get(timeout=TIMEOUT_S)
    first = first_of(last)
    first.get(timeout=TIMEOUT_S)  # Celery calls what comes next before it stores the result
    graph = first.build_graph()
    assert {str(node) for node in graph.adjacent} == {first.id, last.id}
    assert [str(node) for node in graph.topsort()] == [last.id, first.id]


def test_what_runs_has_no_graph_yet(
    tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """`iterdeps` of a task that is not ready raises, unless intermediate states will do."""
    result = tasks.wait_for.delay(key)
    hear(f"{key}:begun")
    with pytest.raises(IncompleteStream):
        list(result.iterdeps())
    assert [node for _, node in result.iterdeps(intermediate=True)] == [result]
    say(key)
    result.get(timeout=TIMEOUT_S)


def test_a_chord_knows_its_header(tasks: Any) -> None:
    """The parent of a body's result is the header's group, with the header's parent before."""
    result = chord([tasks.identity.s(1), tasks.identity.s(2)], tasks.xsum.s())()
    assert result.get(timeout=TIMEOUT_S) == 3
    assert isinstance(result.parent, GroupResult)
    assert result.parent.get(timeout=TIMEOUT_S) == [1, 2]
    last = chain(tasks.identity.s(1), group(tasks.add.s(1), tasks.add.s(2)), tasks.xsum.s())()
    assert last.get(timeout=TIMEOUT_S) == 5
    assert last.parent.parent.get(timeout=TIMEOUT_S) == 1


def test_values_are_collected_through_a_chord(tasks: Any) -> None:
    """`collect` from the first task of a chain reaches the values of a group in it."""
    last = chain(tasks.identity.s(1), group(tasks.add.s(1), tasks.add.s(2)))()
    assert last.get(timeout=TIMEOUT_S) == [2, 3]
    values = [value for _, value in last.parent.collect(timeout=TIMEOUT_S)]
    assert values == [1, [2, 3], 2, 3]
