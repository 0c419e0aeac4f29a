"""Chains, groups and chords, and each within the others, on a real worker."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import celery
import pytest
from celery import chain, chord, group

from tests.support import celery_tasks

TIMEOUT_S = 20.0

#: Programs by name: what they are made of, and what they come to.
PROGRAMS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "chain": (lambda t: chain(t.add.s(1, 2), t.mul.s(3), t.add.s(1)), 10),
    "chain of one": (lambda t: chain(t.add.s(1, 2)), 3),
    "chain by |": (lambda t: t.add.s(1, 2) | t.mul.s(2) | t.mul.s(2), 12),
    "immutable signatures": (lambda t: chain(t.add.s(1, 2), t.add.si(5, 5)), 10),
    "partial with keywords": (
        lambda t: chain(t.identity.s(1), t.collect.s(2, a=3)),
        [[1, 2], {"a": 3}],
    ),
    "group": (lambda t: group(t.add.s(n, n) for n in range(4)), [0, 2, 4, 6]),
    "group of one": (lambda t: group([t.add.s(1, 1)]), [2]),
    "group in group": (
        lambda t: group(t.add.s(1, 1), group(t.add.s(2, 2), t.add.s(3, 3))),
        [2, 4, 6],
    ),
    "chain in group": (
        lambda t: group(chain(t.add.s(n, n), t.mul.s(10)) for n in range(3)),
        [0, 20, 40],
    ),
    "chord in group": (
        lambda t: group(t.add.s(1, 1), chord([t.add.s(2, 2), t.add.s(3, 3)], t.xsum.s())),
        [2, 10],
    ),
    "group at the end of a chain": (
        lambda t: chain(t.add.s(1, 1), group(t.add.s(n) for n in range(3))),
        [2, 3, 4],
    ),
    "group at the start of a chain": (
        lambda t: chain(group(t.add.s(n, n) for n in range(3)), t.xsum.s()),
        6,
    ),
    "group in the middle of a chain": (
        lambda t: chain(t.add.s(1, 1), group(t.add.s(n) for n in range(3)), t.xsum.s(), t.add.s(1)),
        10,
    ),
    "two groups in a row": (
        lambda t: chain(
            group(t.identity.s(n) for n in (1, 2)), group(t.xsum.s(), t.collect.s(key=1))
        ),
        [3, [[[1, 2]], {"key": 1}]],
    ),
    "chord": (lambda t: chord([t.add.s(n, n) for n in range(4)], t.xsum.s()), 12),
    "chord of one": (lambda t: chord([t.add.s(1, 1)], t.xsum.s()), 2),
    "chord of a generator": (lambda t: chord((t.add.s(n, n) for n in range(5)), t.xsum.s()), 20),
    "chord of a group": (lambda t: chord(group(t.add.s(n, n) for n in range(3)), t.xsum.s()), 6),
    "chord by |": (lambda t: group(t.add.s(n, n) for n in range(3)) | t.xsum.s(), 6),
    "chain as a chord's body": (
        lambda t: chord([t.add.s(n, n) for n in range(3)], chain(t.xsum.s(), t.add.s(100))),
        106,
    ),
    "group as a chord's body": (
        lambda t: chord([t.add.s(n, n) for n in range(3)], group(t.xsum.s(), t.identity.s())),
        [6, [0, 2, 4]],
    ),
    "chord as a chord's body": (
        lambda t: chord(
            [t.identity.s(1), t.identity.s(2)], chord([t.xsum.s(), t.xsum.s()], t.xsum.s())
        ),
        6,
    ),
    "chain in a chord's header": (
        lambda t: chord([chain(t.add.s(n, n), t.mul.s(2)) for n in range(3)], t.identity.s()),
        [0, 4, 8],
    ),
    "long chord": (
        lambda t: chord([t.identity.s(n) for n in range(150)], t.identity.s()),
        [*range(150)],
    ),
    "groups in a long chord's header": (
        lambda t: chord([group(t.identity.s(n), t.identity.s(-n)) for n in range(75)], t.xsum.s()),
        0,
    ),
    "group in a chord's header": (
        # Their sum: Celery itself turns the order of such a group around.
        lambda t: chord([t.identity.s(1), group(t.identity.s(2), t.identity.s(3))], t.xsum.s()),
        6,
    ),
    "group at the end of a chain in a chord's header": (
        lambda t: chord(
            [chain(t.identity.s(1), group(t.add.s(1), t.add.s(2))), t.identity.s(9)],
            t.identity.s(),
        ),
        [[2, 3], 9],
    ),
    "chord in a chord's header": (
        lambda t: chord(
            [t.identity.s(1), chord([t.identity.s(2), t.identity.s(3)], t.xsum.s())],
            t.identity.s(),
        ),
        [1, 5],
    ),
    "chords in chords in chords": (
        lambda t: chord(
            [chord([chord([t.identity.s(1)] * 2, t.xsum.s())] * 2, t.xsum.s())] * 2, t.xsum.s()
        ),
        8,
    ),
    "chord in a chain": (
        lambda t: chain(t.identity.s(1), chord([t.add.s(1), t.add.s(2)], t.xsum.s()), t.mul.s(10)),
        50,
    ),
    "chords in a row": (
        lambda t: chain(
            chord([t.identity.s(1), t.identity.s(2)], t.xsum.s()),
            chord([t.add.s(1), t.add.s(2)], t.xsum.s()),
        ),
        9,
    ),
    "chord in a group in a chain": (
        lambda t: chain(
            t.identity.s(1),
            group(t.add.s(1), chord([t.add.s(1), t.add.s(2)], t.xsum.s())),
            t.xsum.s(),
        ),
        7,
    ),
    "six chords in a row": (
        lambda t: chain(
            *(chord([t.identity.si(n), t.identity.si(n)], t.xsum.s()) for n in range(6))
        ),
        10,
    ),
    "chains around groups in a chord's header": (
        lambda t: chord(
            [chain(t.identity.s(n), group(t.add.s(1), t.add.s(2)), t.xsum.s()) for n in range(5)],
            t.identity.s(),
        ),
        [3, 5, 7, 9, 11],
    ),
    "twenty chords in a group": (
        lambda t: group(chord([t.identity.s(n)] * 2, t.xsum.s()) for n in range(20)),
        [2 * n for n in range(20)],
    ),
    "empty group in a chord's header": (
        lambda t: chord([group([]), t.identity.s(1)], t.identity.s()),
        [1],
    ),
    "callback of a group's member": (
        lambda t: group(t.identity.s(1).set(link=t.add.s(1)), t.identity.s(2)),
        [1, 2],
    ),
    "chord of retried tasks in a chain": (
        lambda t: chain(chord([t.retry_until.s(1), t.retry_until.s(2)], t.xsum.s()), t.add.s(1)),
        4,
    ),
    "chunks": (
        lambda t: t.add.chunks([(n, n) for n in range(7)], 3).group(),
        [[0, 2, 4], [6, 8, 10], [12]],
    ),
    "map": (lambda t: t.xsum.map([[1, 2], [3, 4]]), [3, 7]),
    "starmap": (lambda t: t.add.starmap([(1, 2), (3, 4)]), [3, 7]),
    "replace": (lambda t: t.replace_with.s(t.add.s(1, 2)), 3),
    "replace by a chain": (lambda t: t.replace_with.s(chain(t.add.s(1, 2), t.add.s(3))), 6),
    "replace by a group": (lambda t: t.replace_with.s(t.add.s(1, 2), t.add.s(3, 4)), [3, 7]),
    "replace by a chord": (
        lambda t: t.replace_with.s(chord([t.add.s(1, 2), t.add.s(3, 4)], t.xsum.s())),
        10,
    ),
    "replace in a chain": (
        lambda t: chain(t.identity.s(1), t.replace_keeping.s("identity"), t.add.s(1)),
        2,
    ),
    "replace in a group": (
        lambda t: group(t.replace_keeping.s(1, "identity"), t.identity.s(2)),
        [1, 2],
    ),
    "replace in a chord's header": (
        lambda t: chord(
            [t.identity.s(0), t.replace_keeping.s(1, "identity"), t.identity.s(2)], t.identity.s()
        ),
        [0, 1, 2],
    ),
    "replace a chord's body": (
        lambda t: chord([t.identity.s(1), t.identity.s(2)], t.replace_keeping.s("xsum")),
        3,
    ),
    "replace by a group in a chord's header": (
        lambda t: chord([t.replace_with.s(t.add.s(1, 2), t.add.s(3, 4))], t.xsum.s()),
        10,
    ),
    "ignored header tasks": (
        lambda t: chord([t.ignored.s(1), t.ignored.s(2)], t.xsum.s()),
        3,
    ),
    "ignored task in a chain": (lambda t: chain(t.ignored.s(1), t.add.s(1)), 2),
    "retries in a chord's header": (
        lambda t: chord([t.retry_until.s(2), t.identity.s(1)], t.xsum.s()),
        3,
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_comes_to_its_value(tasks: Any, name: str) -> None:
    """Whatever canvas is made of, its result is the value it stands for."""
    make, value = PROGRAMS[name]
    assert make(tasks).apply_async().get(timeout=TIMEOUT_S) == value


def test_results_of_a_group_keep_their_order(
    tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """Values come in the order of the calls, in whatever order the tasks end."""
    result = group(tasks.wait_for.s(key, "slow"), tasks.identity.s("quick"))()
    hear(f"{key}:begun")
    assert result.results[1].get(timeout=TIMEOUT_S) == "quick"
    say(key)
    assert result.get(timeout=TIMEOUT_S) == ["slow", "quick"]


def test_a_chord_hands_its_values_over_in_order(
    tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """The body gets the header's values in the header's order, whoever ends first."""
    result = chord([tasks.wait_for.s(key, "slow"), tasks.identity.s("quick")], tasks.identity.s())()
    hear(f"{key}:begun")
    assert result.parent.results[1].get(timeout=TIMEOUT_S) == "quick"
    assert not result.ready()
    say(key)
    assert result.get(timeout=TIMEOUT_S) == ["slow", "quick"]


def test_a_chord_of_100(tasks: Any) -> None:
    """The body of a chord of 100 runs once, with the hundred values in order."""
    result = chord((tasks.identity.s(n) for n in range(100)), tasks.twice.s())()
    first, second, task_id = result.get(timeout=TIMEOUT_S)
    assert first == second == list(range(100))
    assert task_id == result.id


def test_a_chord_counts_every_part_once(tasks: Any, key: str, hear: Callable[[str], str]) -> None:
    """A part that was delivered twice, since its process died, counts once."""
    result = chord(
        [tasks.die_once.s(key), tasks.identity.s(1), tasks.identity.s(2)], tasks.identity.s()
    )()
    assert result.get(timeout=TIMEOUT_S) == ["second time", 1, 2]


def test_a_body_runs_once(app: Any, tasks: Any, key: str, hear: Callable[[str], str]) -> None:
    """However many chords end at once, each body is called once."""
    results = [
        chord([tasks.identity.s(n), tasks.identity.s(n)], tasks.told.s(key))() for n in range(10)
    ]
    for result in results:
        result.get(timeout=TIMEOUT_S)
    assert sorted(hear(key) for _ in results) == [f"[{n}, {n}]" for n in range(10)]
    # The worker is idle again: a second call would have been heard by now.
    assert tasks.add.delay(1, 1).get(timeout=TIMEOUT_S) == 2
    assert celery_tasks.connection(app.conf.broker_url, 0).llen(key) == 0


def test_a_task_may_be_added_to_its_chord(tasks: Any) -> None:
    """`add_to_chord` makes a chord longer while it runs; what is added stands by who added it."""
    result = chord([tasks.add_one_more.s(1), tasks.add_one_more.s(2)], tasks.identity.s())()
    value = result.get(timeout=TIMEOUT_S)
    # Which of the two is first, the one that adds or the one it adds, nobody promises.
    assert [sorted(value[:2]), sorted(value[2:])] == [[1, 10], [2, 20]]


def test_an_empty_group_is_done(tasks: Any) -> None:
    """A group of nothing is ready at once, successful, and comes to an empty list."""
    result = group([]).apply_async()
    assert result.get(timeout=TIMEOUT_S) == []
    assert (result.ready(), result.successful(), result.failed()) == (True, True, False)
    assert tasks.add is not None


def test_a_chord_without_header_calls_its_body(app: Any, tasks: Any) -> None:
    """A chord of nothing calls its body with an empty list."""
    assert chord([], tasks.identity.s(), app=app)().get(timeout=TIMEOUT_S) == []
    assert chord([], tasks.xsum.s(), app=app).apply_async().get(timeout=TIMEOUT_S) == 0


def test_a_group_of_500(tasks: Any) -> None:
    """A group of 500 comes back whole and in order."""
    result = group(tasks.identity.s(n) for n in range(500))()
    assert result.get(timeout=TIMEOUT_S) == list(range(500))
    assert result.completed_count() == 500


def test_a_chord_may_be_called_again(tasks: Any) -> None:
    """Every call of the same chord runs its body, with nothing of the call before."""
    signature = chord([tasks.identity.s(1), tasks.identity.s(2)], tasks.xsum.s())
    assert [signature.apply_async().get(timeout=TIMEOUT_S) for _ in range(3)] == [3, 3, 3]


def test_tasks_know_their_place(tasks: Any) -> None:
    """Each task of a chain knows who called it and who came first; group members their place."""
    last = chain(tasks.identity.s(0), tasks.who_after.s())()
    seen = last.get(timeout=TIMEOUT_S)
    assert (seen["parent_id"], seen["root_id"]) == (last.parent.id, last.parent.id)
    result = group(tasks.who.s(), tasks.who.s())()
    places = [(seen["group"], seen["group_index"]) for seen in result.get(timeout=TIMEOUT_S)]
    assert places == [(result.id, 0), (result.id, 1)]


def test_a_group_within_a_task(tasks: Any) -> None:
    """A task that returns a result hands it over as one that can be waited for."""
    value = tasks.spawn_group.delay(3).get(timeout=TIMEOUT_S)
    result = celery.result.result_from_tuple(value, app=tasks.spawn_group.app)
    assert isinstance(result, celery.result.GroupResult)
    assert result.get(timeout=TIMEOUT_S) == [0, 2, 4]


def test_every_task_of_a_chain_has_its_result(tasks: Any) -> None:
    """Every task of a chain has a result of its own, reached through `parent`."""
    last = chain(tasks.add.s(1, 1), tasks.add.s(2), tasks.add.s(3))()
    assert last.get(timeout=TIMEOUT_S) == 7
    assert last.parent.get(timeout=TIMEOUT_S) == 4
    assert last.parent.parent.get(timeout=TIMEOUT_S) == 2
    assert last.parent.parent.parent is None


def test_a_canvas_of_ids_chosen_before(app: Any, tasks: Any) -> None:
    """A frozen canvas can be waited for by its ids before it is called."""
    signature = chain(tasks.add.s(1, 1), tasks.add.s(2))
    task_id = str(uuid.uuid4())
    signature.freeze(task_id)
    waiting = app.AsyncResult(task_id)
    assert waiting.state == "PENDING"
    signature.apply_async(task_id=task_id)
    assert waiting.get(timeout=TIMEOUT_S) == 4
