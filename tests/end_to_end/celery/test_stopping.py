"""Tasks that are revoked, run out of time, or lose their process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import chord, group
from celery.exceptions import TaskRevokedError, TimeLimitExceeded, WorkerLostError

TIMEOUT_S = 20.0


def test_a_waiting_task_is_revoked(app: Any, tasks: Any) -> None:
    """A task revoked before it runs is REVOKED for everybody, at once, and never runs."""
    result = tasks.identity.apply_async((1,), countdown=3600)
    result.revoke()
    with pytest.raises(TaskRevokedError, match="revoked"):
        result.get(timeout=TIMEOUT_S)
    assert (result.state, result.ready()) == ("REVOKED", True)
    assert (result.successful(), result.failed()) == (False, False)
    assert isinstance(app.AsyncResult(result.id).result, TaskRevokedError)


def test_a_revoked_task_may_be_handed_over(tasks: Any) -> None:
    """`get(propagate=False)` of a revoked task returns the exception."""
    result = tasks.identity.apply_async((1,), countdown=3600)
    result.revoke()
    assert isinstance(result.get(timeout=TIMEOUT_S, propagate=False), TaskRevokedError)


def test_a_running_task_is_terminated(tasks: Any, key: str, hear: Callable[[str], str]) -> None:
    """`revoke(terminate=True)` ends a task that runs."""
    result = tasks.wait_for.delay(key)
    hear(f"{key}:begun")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(timeout=TIMEOUT_S)
    assert result.state == "REVOKED"
    assert tasks.add.delay(1, 1).get(timeout=TIMEOUT_S) == 2


def test_a_running_task_is_killed(tasks: Any, key: str, hear: Callable[[str], str]) -> None:
    """`revoke(terminate=True, signal="SIGKILL")` ends a task whatever it does."""
    result = tasks.wait_for.delay(key)
    hear(f"{key}:begun")
    result.revoke(terminate=True, signal="SIGKILL")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=TIMEOUT_S)


def revoke_and_wait(app: Any, result: Any) -> None:
    """Revokes a task, and returns when the worker has heard it."""
    answers = app.control.revoke(result.id, reply=True, limit=1, timeout=TIMEOUT_S)
    assert len(answers) == 1


def test_revoking_without_terminating_lets_it_end(
    app: Any, tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """A task that already runs comes to its value although it was revoked."""
    result = tasks.wait_for.delay(key, "value")
    hear(f"{key}:begun")
    revoke_and_wait(app, result)
    say(key)
    assert result.get(timeout=TIMEOUT_S) == "value"


def test_what_is_done_stays_done(app: Any, tasks: Any) -> None:
    """Revoking a task that succeeded changes nothing."""
    result = tasks.add.delay(1, 1)
    assert result.get(timeout=TIMEOUT_S) == 2
    revoke_and_wait(app, result)
    fresh = tasks.add.AsyncResult(result.id)
    assert (fresh.state, fresh.result) == ("SUCCESS", 2)


def test_a_group_is_revoked(tasks: Any) -> None:
    """`revoke` of a group reaches every member."""
    result = group(tasks.identity.s(n).set(countdown=3600) for n in range(3))()
    result.revoke()
    outcomes = result.get(timeout=TIMEOUT_S, propagate=False)
    assert [type(outcome) for outcome in outcomes] == [TaskRevokedError] * 3
    assert (result.ready(), result.successful(), result.failed()) == (True, False, False)


def test_an_expired_task_is_revoked(tasks: Any) -> None:
    """A task that is delivered after it expired is REVOKED."""
    result = tasks.identity.apply_async((1,), expires=-1)
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(timeout=TIMEOUT_S)


def test_a_soft_time_limit_can_be_heeded(tasks: Any, key: str) -> None:
    """A task that notices its soft time limit may end well."""
    result = tasks.sleep_softly.apply_async((key, 30), soft_time_limit=1)
    assert result.get(timeout=TIMEOUT_S) == "cut short"


def test_a_soft_time_limit_fails_the_task(tasks: Any) -> None:
    """A task that does not notice its soft time limit fails with it."""
    result = tasks.sleep.apply_async((30,), soft_time_limit=1)
    error = result.get(timeout=TIMEOUT_S, propagate=False)
    assert type(error).__name__ == "SoftTimeLimitExceeded"
    assert result.state == "FAILURE"


def test_a_hard_time_limit_kills(tasks: Any) -> None:
    """A task over its hard time limit is killed, and its main process says FAILURE."""
    result = tasks.sleep.apply_async((30,), time_limit=1)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=TIMEOUT_S)
    assert result.state == "FAILURE"
    assert tasks.add.delay(1, 1).get(timeout=TIMEOUT_S) == 2


def test_a_part_that_runs_out_of_time_fails_its_chord(tasks: Any) -> None:
    """A header task over its hard time limit fails the body, which nobody else could tell."""
    parts = [tasks.identity.s(1), tasks.sleep.s(30).set(time_limit=1)]
    result = chord(parts, tasks.xsum.s())()
    error = result.get(timeout=TIMEOUT_S, propagate=False)
    assert "TimeLimitExceeded" in str(error)
    assert result.parent.results[1].id in str(error)


def test_a_task_whose_process_died_runs_again(tasks: Any, key: str) -> None:
    """With late acknowledgement a task is delivered again after its process was killed."""
    assert tasks.die_once.delay(key).get(timeout=TIMEOUT_S) == "second time"


def test_a_task_whose_process_died_fails(tasks: Any) -> None:
    """A task acknowledged early fails with WorkerLostError when its process is killed."""
    result = tasks.die.delay()
    with pytest.raises(WorkerLostError):
        result.get(timeout=TIMEOUT_S)
    assert result.state == "FAILURE"


def test_waiting_ends_when_the_task_is_stopped(
    tasks: Any, key: str, hear: Callable[[str], str]
) -> None:
    """Whoever waits is told of the end of a terminated task without delay."""
    result = tasks.wait_for.delay(key)
    hear(f"{key}:begun")
    result.revoke(terminate=True)
    began = time.monotonic()
    result.get(timeout=TIMEOUT_S, propagate=False)
    assert time.monotonic() - began < TIMEOUT_S / 4
