"""A chord's parts that are read before it is complete: what comes of it is the same."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from itertools import cycle
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from celery.result import GroupResult

from resultd.celery import _parts_ahead
from tests.client.celery.conftest import MakeApp
from tests.support.celery_backend import published
from tests.support.celery_chord import Chord, NewId

PARTS = 200


class Brought:
    """What the answers to an app's reports brought of other parts."""

    def __init__(self, app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        #: The numbers of parts: ahead, and with claims, None where those were no continuation.
        self.ahead: list[int] = []
        self.claims: list[int | None] = []
        send = app.backend.send

        def noting(store: Any) -> Any:
            answer = send(store)
            if answer.HasField("members_ahead"):
                self.ahead.append(len(answer.members_ahead.events))
            if answer.claim.HasField("members"):
                members = answer.claim.members
                self.claims.append(len(members.events) if members.continued else None)
            return answer

        monkeypatch.setattr(app.backend, "send", noting)


@pytest.fixture
def brought(app: Any, monkeypatch: pytest.MonkeyPatch) -> Brought:
    """What the app's reports bring."""
    return Brought(app, monkeypatch)


def at(app: Any, chord: Chord) -> Chord:
    """A chord as another process' app returns its parts."""
    there = copy(chord)
    there.app = app
    return there


Both = tuple[Chord, Chord, Brought]


@pytest.fixture
def both(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, new_id: NewId) -> Both:
    """A chord at two apps, and what the first one's reports bring."""
    app = make_app()
    chord = Chord(app, new_id)
    return chord, at(make_app(), chord), Brought(app, monkeypatch)


def test_little_is_left_for_the_claim(
    app: Any, chord: Chord, brought: Brought, new_id: NewId
) -> None:
    """Every eighth report brings what was returned since; the order is the header's."""
    chord.size(PARTS)
    indexes = list(range(PARTS))
    random.Random(1).shuffle(indexes)
    for index in indexes:
        chord.done(new_id(), {"n": index}, index)
    assert published(app) == [("body", chord.body_id, [{"n": n} for n in range(PARTS)])]
    assert sum(brought.ahead) >= PARTS - 2 * _parts_ahead.EACH
    (with_claim,) = brought.claims
    assert with_claim is not None
    assert with_claim + sum(brought.ahead) == PARTS
    assert app.backend._chords._ahead._chords == {}


def test_each_of_few_processes_reads_ahead(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, new_id: NewId
) -> None:
    """Whichever returns the last part has the others'."""
    apps = [make_app() for _ in range(3)]
    seen = [Brought(app, monkeypatch) for app in apps]
    chord = Chord(apps[0], new_id)
    turns = cycle(at(app, chord) for app in apps)
    chord.size(PARTS)
    for index, turn in zip(range(PARTS), turns, strict=False):
        turn.done(new_id(), index, index)
    last = (PARTS - 1) % len(apps)
    assert published(apps[last]) == [("body", chord.body_id, list(range(PARTS)))]
    assert all(sum(each.ahead) >= PARTS / 2 for each in seen)
    (with_claim,) = seen[last].claims
    assert with_claim is not None
    assert with_claim <= 2 * len(apps) * _parts_ahead.EACH


def test_who_returns_few_reads_nothing_ahead(both: Both, new_id: NewId) -> None:
    """One of many processes is not likely to be the last one; it has all with the claim."""
    few, most, brought = both
    few.size(PARTS)
    for index in range(PARTS):
        (few if index % 16 == 15 or index == PARTS - 1 else most).done(new_id(), index, index)
    assert published(few.app) == [("body", few.body_id, list(range(PARTS)))]
    assert brought.ahead == []
    assert brought.claims == [None]


def test_small_chords_read_nothing_ahead(
    app: Any, chord: Chord, brought: Brought, new_id: NewId
) -> None:
    """There is nothing to be gained."""
    chord.size(_parts_ahead.PARTS_MIN - 1)
    for index in range(_parts_ahead.PARTS_MIN - 1):
        chord.done(new_id(), index, index)
    assert len(published(app)) == 1
    assert (brought.ahead, brought.claims) == ([], [None])


def test_a_part_that_failed_and_succeeds_after_all_counts_as_it_ended(
    app: Any, chord: Chord, brought: Brought, new_id: NewId
) -> None:
    """What may still change is not kept."""
    chord.size(PARTS)
    task_id = new_id()
    chord.failed(task_id, ValueError("not for good"), 0)
    for index in range(1, PARTS - 1):
        chord.done(new_id(), index, index)
    chord.done(task_id, 0, 0)
    chord.done(new_id(), PARTS - 1, PARTS - 1)
    assert published(app) == [("body", chord.body_id, list(range(PARTS)))]
    assert len(brought.ahead) == 1  # the one that told of it
    assert brought.claims == [None]


def test_a_part_that_failed_fails_the_body(
    app: Any, chord: Chord, brought: Brought, new_id: NewId
) -> None:
    """Though the others were read before."""
    chord.size(PARTS)
    for index in range(PARTS - 1):
        chord.done(new_id(), index, index)
    chord.failed(new_id(), ValueError("the last"), PARTS - 1)
    assert "the last" in str(chord.error())
    assert brought.claims != [None]


def test_groups_in_the_header_come_as_lists(app: Any, new_id: NewId, brought: Brought) -> None:
    """Shaped by what lies with the group, of what was read ahead."""
    ids = [new_id() for _ in range(PARTS)]
    inner = GroupResult(new_id(), [app.AsyncResult(id_) for id_ in ids[:100]])
    header = [inner, *(app.AsyncResult(id_) for id_ in ids[100:])]
    chord = Chord(app, new_id, header)
    chord.size(PARTS)
    for index, task_id in enumerate(ids):
        chord.done(task_id, index, index)
    values = [list(range(100)), *range(100, PARTS)]
    assert published(app) == [("body", chord.body_id, values)]
    assert None not in brought.claims


def test_tasks_that_were_added_stand_by_those_that_added_them(
    app: Any, chord: Chord, brought: Brought, new_id: NewId
) -> None:
    """In a lane of their own, which comes after what it belongs to."""
    chord.size(PARTS + 1)
    for index in range(PARTS):
        chord.done(new_id(), index, index)
    chord.done(new_id(), "added to 7", 7)
    values = [*range(8), "added to 7", *range(8, PARTS)]
    assert published(app) == [("body", chord.body_id, values)]
    assert None not in brought.claims


def test_another_run_of_a_chord_has_its_own_parts(
    both: Both, monkeypatch: pytest.MonkeyPatch, new_id: NewId
) -> None:
    """What a process kept of one that another finished is not used for the next."""
    mine, other, brought = both
    backend = mine.app.backend
    mine.size(PARTS + 1)
    for index, turn in zip(range(PARTS + 1), cycle([other, mine]), strict=False):
        turn.done(new_id(), index, index)
    assert len(published(other.app)) == 1
    assert backend._chords._ahead._chords  # it does not know yet
    mine.apply()
    fewer = PARTS // 2
    mine.size(fewer)
    monkeypatch.setattr(backend.client, "iterate", None)  # they need not be read again
    for index, turn in zip(range(fewer), cycle([other, mine]), strict=False):
        turn.done(new_id(), -index, index)
    assert published(mine.app) == [("body", mine.body_id, [-n for n in range(fewer)])]
    assert None not in brought.claims


@pytest.mark.parametrize("others", [False, True])
def test_large_parts_are_not_kept(both: Both, new_id: NewId, others: bool) -> None:
    """Neither where a process' own say so, nor where those of others turn out to be."""
    mine, theirs, brought = both
    mine.size(PARTS)
    large = [others and index in range(100, 106) for index in range(PARTS)]
    size = 800_000 if others else _parts_ahead.KEPT_BYTES_MAX // PARTS
    for index in range(PARTS):
        value = "x" * size if large[index] or not others else ""
        (theirs if large[index] else mine).done(new_id(), value, index)
        kept = mine.app.backend._chords._ahead._chords.get(mine.id)
        assert kept is None or kept.kept_bytes <= _parts_ahead.KEPT_BYTES_MAX
    ((_, _, values),) = published(mine.app)
    assert sum(map(len, values)) == size * (6 if others else PARTS)
    assert brought.claims == [None]
    assert bool(brought.ahead) == others


def test_what_is_left_may_be_too_much_for_an_answer(both: Both, new_id: NewId) -> None:
    """Then all are read, from the first on."""
    mine, theirs, brought = both
    mine.size(PARTS)
    for index in range(PARTS - 5):
        mine.done(new_id(), "", index)
    for index in range(PARTS - 5, PARTS - 1):
        theirs.done(new_id(), "x" * 500_000, index)
    mine.done(new_id(), "", PARTS - 1)
    ((_, _, values),) = published(mine.app)
    assert [len(value) for value in values] == [0] * (PARTS - 5) + [500_000] * 4 + [0]
    assert None not in brought.claims


def test_who_has_begun_goes_on_while_others_join(both: Both, new_id: NewId) -> None:
    """To half the share it takes to begin; then what was kept is dropped, and may be had anew."""
    mine, theirs, brought = both
    each, most = _parts_ahead.EACH, _parts_ahead.PROCESSES_MAX
    mine.size(1_000)
    ahead = mine.app.backend._chords._ahead.of(mine.id)
    indexes = iter(range(1_000))

    def returned(chord: Chord, count: int) -> None:
        for _ in range(count):
            chord.done(new_id(), 0, next(indexes))

    returned(mine, each)
    assert len(brought.ahead) == 1
    returned(theirs, 12 * each)  # too many to begin
    returned(mine, each)
    assert len(brought.ahead) == 2
    assert sum(brought.ahead) == 14 * each  # none twice
    returned(theirs, 4 * each * most)
    returned(mine, 2)  # the second one has heard of them
    assert len(brought.ahead) == 2
    assert not ahead._values


def test_parts_that_are_missing_are_read(
    app: Any, chord: Chord, brought: Brought, new_id: NewId
) -> None:
    """Should ever two threads' answers have crossed: as many are needed as were counted."""
    chord.size(PARTS)
    for index in range(PARTS - 1):
        chord.done(new_id(), index, index)
    ahead = app.backend._chords._ahead.of(chord.id)
    del ahead._values[3], ahead._task_ids[3]
    chord.done(new_id(), PARTS - 1, PARTS - 1)
    assert published(app) == [("body", chord.body_id, list(range(PARTS)))]
    assert None not in brought.claims


def test_a_late_answer_of_another_thread_takes_nothing_away(
    app: Any, chord: Chord, new_id: NewId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer of all, heard while the parts are put in order."""
    answers = []
    send = app.backend.send

    def noting(store: Any) -> Any:
        answers.append(send(store))
        return answers[-1]

    monkeypatch.setattr(app.backend, "send", noting)
    chord.size(PARTS)
    for index in range(PARTS - 1):
        chord.done(new_id(), index, index)
    ahead = app.backend._chords._ahead.of(chord.id)
    with_rest = ahead.with_rest

    def overtaken(*claimed: Any) -> Any:
        found = with_rest(*claimed)
        ahead.hear(next(each for each in answers if each.HasField("members_ahead")))
        return found

    monkeypatch.setattr(ahead, "with_rest", overtaken)
    chord.done(new_id(), PARTS - 1, PARTS - 1)
    assert published(app) == [("body", chord.body_id, list(range(PARTS)))]


def test_what_was_dropped_in_part_is_read_again(app: Any, new_id: NewId, brought: Brought) -> None:
    """An interrupt may leave values without their tasks, which a header with groups asks for."""
    ids = [new_id() for _ in range(PARTS)]
    inner = GroupResult(new_id(), [app.AsyncResult(id_) for id_ in ids])
    chord = Chord(app, new_id, [inner])
    chord.size(PARTS)
    for index in range(PARTS - 1):
        chord.done(ids[index], index, index)
    app.backend._chords._ahead.of(chord.id)._task_ids.clear()
    chord.done(ids[-1], PARTS - 1, PARTS - 1)
    assert published(app) == [("body", chord.body_id, [list(range(PARTS))])]
    assert None not in brought.claims


def test_dense_json_counts_as_what_it_becomes(app: Any, chord: Chord, new_id: NewId) -> None:
    """Two bytes of text may be 64 of memory."""
    value: list[dict[str, int]] = [{}] * 100
    chord.size(PARTS)
    for index in range(_parts_ahead.EACH * 2):
        chord.done(new_id(), value, index)
    ahead = app.backend._chords._ahead.of(chord.id)
    parts = len(ahead._values)
    assert parts
    assert ahead.kept_bytes >= parts * sum(map(sys.getsizeof, [value, *({} for _ in value)]))


def test_a_granted_claim_is_known_before_the_parts_are(
    app: Any, chord: Chord, new_id: NewId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A soft time limit while they are taken up: it is given back, not left to its lease."""
    chord.size(PARTS)
    for index in range(PARTS - 1):
        chord.done(new_id(), index, index)

    def interrupted(_: object) -> None:
        raise SoftTimeLimitExceeded

    with monkeypatch.context() as patch:
        patch.setattr(app.backend._chords._ahead.of(chord.id), "hear", interrupted)
        with pytest.raises(SoftTimeLimitExceeded):
            chord.done(new_id(), PARTS - 1, PARTS - 1)
    assert app.backend._chords.finish(chord.id)
    assert published(app) == [("body", chord.body_id, list(range(PARTS)))]


@pytest.mark.parametrize(
    ("together", "value", "kept"), [(3, "", 3), (3, "x" * 19_000, 2), (34, "", 0)]
)
def test_several_chords_at_a_time(
    app: Any, brought: Brought, new_id: NewId, together: int, value: str, kept: int
) -> None:
    """Of so many something is kept as is small enough together; all have their own parts."""
    several = [Chord(app, new_id) for _ in range(together)]
    for chord in several:
        chord.size(PARTS)
    most = 0
    for index in range(PARTS):
        for number, chord in enumerate(several):
            chord.done(new_id(), [number, index, value], index)
        chords = app.backend._chords._ahead._chords.values()
        most = max(most, sum(1 for each in chords if each.kept_bytes))
        assert sum(each.kept_bytes for each in chords) <= 3 * _parts_ahead.KEPT_BYTES_MAX
        assert len(chords) <= _parts_ahead.CHORDS_MAX
    assert most >= kept
    assert sorted(published(app)) == sorted(
        ("body", chord.body_id, [[number, index, value] for index in range(PARTS)])
        for number, chord in enumerate(several)
    )
    assert sum(claim is not None for claim in brought.claims) == kept


def test_threads_of_one_process_return_parts_together(app: Any, new_id: NewId) -> None:
    """Their answers cross; the body has each part once."""
    for _ in range(3):
        one = Chord(app, new_id)
        one.size(PARTS)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda n, of=one: of.done(new_id(), n, n), range(PARTS)))
        assert published(app) == [("body", one.body_id, list(range(PARTS)))]


def test_custom_types_come_through(app: Any, chord: Chord, brought: Brought, new_id: NewId) -> None:
    """What kombu writes with a mark of its own is read with it."""
    chord.size(PARTS)
    for index in range(PARTS):
        chord.done(new_id(), b"bytes %d" % index, index)
    assert published(app) == [("body", chord.body_id, [b"bytes %d" % n for n in range(PARTS)])]
    assert None not in brought.claims
