"""The question about unfinished chords, on a timer that can be looked into."""

from __future__ import annotations

import time
from typing import Any

import pytest
from kombu.asynchronous.timer import Timer

from resultd.celery import _questions
from resultd.celery._questions import LOOK_AGAIN, Questions

PERIOD_S = 15.0


class Asked:
    """Counts questions and gives what it was told to."""

    def __init__(self) -> None:
        self.times = 0
        self.found = False

    def __call__(self) -> bool:
        """One question."""
        self.times += 1
        return self.found


def due(timer: Any) -> list[float]:
    """Seconds until each entry of a timer is due."""
    now = time.monotonic()
    return sorted(round(each.eta - now, 1) for each in timer.queue if not each.entry.canceled)


def test_a_question_is_asked_once_per_period() -> None:
    """It is due a period from now, and again after each time."""
    timer, asked = Timer(), Asked()
    Questions(timer, asked, PERIOD_S)
    assert due(timer) == [PERIOD_S]
    timer.queue[0].entry()
    assert asked.times == 1


def test_what_was_found_is_looked_at_again_soon() -> None:
    """A question that found something is followed by one more before its period is over."""
    timer, asked = Timer(), Asked()
    asked.found = True
    Questions(timer, asked, PERIOD_S)
    timer.queue[0].entry()
    assert LOOK_AGAIN in due(timer)


def test_a_timer_that_forgot_the_question_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a period without a question and some patience it is put on the timer once more."""
    timer, asked = Timer(), Asked()
    questions = Questions(timer, asked, PERIOD_S)
    timer.clear()
    questions.revive()
    assert due(timer) == []  # it is not late yet
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + PERIOD_S + _questions.LATE + 1)
    questions.revive()
    questions.revive()
    assert len(timer.queue) == 1


def test_a_question_that_was_only_late_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still on the timer is taken off before it is put there again."""
    timer, asked = Timer(), Asked()
    questions = Questions(timer, asked, PERIOD_S)
    monkeypatch.setattr(_questions, "LATE", -PERIOD_S - 1)
    questions.revive()
    assert len(due(timer)) == 1
