"""One task at a time on a real worker: its value, its states, what is known of it."""

from __future__ import annotations

import datetime
import os
import pickle
import uuid
from collections.abc import Callable
from typing import Any

import celery
import pytest

from tests.support.celery_tasks import CustomError

TIMEOUT_S = 20.0
VALUES = {
    "none": None,
    "false": False,
    "zero": 0,
    "empty text": "",
    "float": 0.1,
    "large integer": 2**70,
    "text": "größer – 大きい \U0001f600 \x00",
    "list": [1, [2, [3, []]], {}],
    "dict": {"a": {"b": [None, True]}, "status": "PENDING", "result": 1},
    "list that looks like a result": [["id", None], None],
    "dict that looks like an error": {"exc_type": "ValueError", "exc_message": ["no"]},
    "1 MB": "x" * 1_000_000,
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back(tasks: Any, name: str) -> None:
    """What a task returns is what `get` returns, whatever it is."""
    result = tasks.identity.delay(VALUES[name])
    assert result.get(timeout=TIMEOUT_S) == VALUES[name]
    assert type(result.result) is type(VALUES[name])
    assert (result.state, result.ready(), result.successful()) == ("SUCCESS", True, True)
    assert (result.failed(), result.traceback) == (False, None)


def test_an_id_is_enough(app: Any, tasks: Any) -> None:
    """A result is found by its task's id, also by one that the caller chose."""
    task_id = f"of my own {uuid.uuid4()}"
    tasks.add.apply_async((1, 2), task_id=task_id)
    assert app.AsyncResult(task_id).get(timeout=TIMEOUT_S) == 3
    assert tasks.add.AsyncResult(task_id).result == 3


def test_an_unknown_id_is_pending(app: Any) -> None:
    """Of a task that nobody knows everything is said as of one that waits."""
    result = app.AsyncResult(str(uuid.uuid4()))
    assert (result.state, result.result, result.traceback) == ("PENDING", None, None)
    assert (result.ready(), result.successful(), result.failed()) == (False, False, False)
    assert (result.date_done, result.children) == (None, None)


def test_existence_follows_the_record(app: Any, tasks: Any) -> None:
    """`exists` is false before the first report, true after it and false once forgotten."""
    assert not app.AsyncResult(str(uuid.uuid4())).exists()
    result = tasks.add.delay(1, 1)
    result.get(timeout=TIMEOUT_S)
    assert result.exists()
    result.forget()
    assert not app.AsyncResult(result.id).exists()


def test_what_is_forgotten_is_pending(app: Any, tasks: Any) -> None:
    """After `forget` the state is PENDING for everybody; forgetting again does no harm."""
    result = tasks.add.delay(1, 1)
    result.get(timeout=TIMEOUT_S)
    result.forget()
    result.forget()
    assert (result.state, result.result) == ("PENDING", None)
    assert app.AsyncResult(result.id).state == "PENDING"


def test_forgetting_a_chain_forgets_its_parents(app: Any, tasks: Any) -> None:
    """`forget` reaches every task before this one."""
    last = celery.chain(tasks.add.s(1, 1), tasks.add.s(1), tasks.add.s(1))()
    assert last.get(timeout=TIMEOUT_S) == 4
    ids = last.as_list()
    assert len(ids) == 3
    for task_id in ids:  # Celery calls what comes next before it stores the result
        app.AsyncResult(task_id).get(timeout=TIMEOUT_S)
    last.forget()
    assert [app.AsyncResult(task_id).state for task_id in ids] == ["PENDING"] * 3


def test_the_time_it_was_done(tasks: Any) -> None:
    """`date_done` is a time with a zone, between the call and the answer."""
    began = datetime.datetime.now(datetime.timezone.utc)
    result = tasks.add.delay(1, 1)
    result.get(timeout=TIMEOUT_S)
    ended = datetime.datetime.now(datetime.timezone.utc)
    slack = datetime.timedelta(milliseconds=1)  # for clocks that are read in coarser units
    assert began - slack <= result.date_done <= ended + slack


def test_started_is_seen(
    tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """A tracked task is STARTED while it runs, and tells in which process."""
    result = tasks.wait_for.delay(key, "value")
    assert hear(f"{key}:begun") == result.id
    assert result.state == "STARTED"
    assert result.info["pid"] > 0
    assert result.info["hostname"] == "worker@localhost"
    assert not result.ready()
    assert result.date_done is None
    say(key)
    assert result.get(timeout=TIMEOUT_S) == "value"


def test_a_custom_state_is_seen(
    tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """A state of a task's own is seen with exactly what it holds."""
    result = tasks.custom_state.delay(key, "BAKING", {"done": [1, 2], "eta": None})
    hear(f"{key}:begun")
    assert (result.state, result.ready()) == ("BAKING", False)
    assert result.info == {"done": [1, 2], "eta": None}
    say(key)
    assert result.get(timeout=TIMEOUT_S) == "done"


def test_progress_is_told_while_waiting(
    tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """`get(on_message=…)` sees each state of a task as it is set, then its end."""
    seen = []

    def on_message(meta: dict[str, Any]) -> None:
        seen.append((meta["status"], meta["result"]))
        say(key)  # only now the task goes on

    result = tasks.progress.delay(key, 3)
    hear(f"{key}:begun")
    say(key)
    assert result.get(timeout=TIMEOUT_S, on_message=on_message) == "done"
    steps = [("PROGRESS", {"current": step, "total": 3}) for step in (1, 2, 3)]
    assert seen == [*steps, ("SUCCESS", "done")]


def test_state_changes_are_seen_by_who_asks(
    tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """`info` is what the last `update_state` said."""
    result = tasks.progress.delay(key, 2)
    for step in ("1", "2"):
        say(key)
        assert hear(f"{key}:step") == step
        assert (result.state, result.info) == ("PROGRESS", {"current": int(step), "total": 2})
    say(key)
    assert result.get(timeout=TIMEOUT_S) == "done"


def test_a_task_may_leave_its_state(tasks: Any, until: Callable[..., None]) -> None:
    """A task that ends by `Ignore` is left in the state it set."""
    result = tasks.ignore_after_state.delay()
    until(lambda: result.state == "LEFT")
    assert result.info == {"by": "itself"}
    assert not result.ready()


def test_an_ignored_result_is_not_waited_for(
    app: Any, tasks: Any, key: str, hear: Callable[[str], str]
) -> None:
    """A task that ignores its result stores none, and `get` returns None at once."""
    result = tasks.ignored_word.delay(key, "said")
    assert result.get(timeout=0.01) is None
    assert result.ignored
    assert hear(key) == "said"
    # Whoever comes later; another task in between gives a stray report time to come.
    assert tasks.add.delay(1, 1).get(timeout=TIMEOUT_S) == 2
    assert app.AsyncResult(result.id).state == "PENDING"


def test_a_call_may_ignore_its_result(
    app: Any, tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """`ignore_result` of one call counts, whatever the task says."""
    task_id = str(uuid.uuid4())
    tasks.wait_for.apply_async((key,), task_id=task_id, ignore_result=True)
    hear(f"{key}:begun")
    say(key)
    stored = tasks.ignored.apply_async(("kept",), ignore_result=False)
    assert stored.get(timeout=TIMEOUT_S) == "kept"
    assert not app.AsyncResult(task_id).ready()


@pytest.mark.parametrize("times", [0, 1, 3])
def test_retries_end_in_a_value(tasks: Any, times: int) -> None:
    """A task that is retried ends in the value of its last run."""
    assert tasks.retry_until.delay(times).get(timeout=TIMEOUT_S) == times
    assert tasks.retry_by_itself.delay(times).get(timeout=TIMEOUT_S) == times


def test_retries_end_in_an_error(tasks: Any) -> None:
    """A task that is retried in vain fails with the error of its last run."""
    result = tasks.retry_in_vain.delay()
    with pytest.raises(CustomError, match="every time"):
        result.get(timeout=TIMEOUT_S)
    assert result.state == "FAILURE"


def test_a_retry_is_waited_for(tasks: Any, until: Callable[..., None]) -> None:
    """RETRY is no end: it shows the error, `get` waits on, and revoking ends it."""
    result = tasks.retry_later.delay()
    until(lambda: result.state == "RETRY")
    assert not result.ready()
    assert isinstance(result.result, RuntimeError)
    assert result.result.args == ("later",)
    assert "later" in result.traceback
    with pytest.raises(celery.exceptions.TimeoutError):
        result.get(timeout=0.05)
    result.revoke()
    with pytest.raises(celery.exceptions.TaskRevokedError):
        result.get(timeout=TIMEOUT_S)


@pytest.mark.usefixtures("differs_from_redis")
def test_who_ran_what_is_known(tasks: Any) -> None:
    """Name, worker and queue are known without `result_extended`."""
    result = tasks.add.delay(1, 1)
    result.get(timeout=TIMEOUT_S)
    assert (result.name, result.worker, result.queue) == ("add", "worker@localhost", "celery")


def test_a_result_can_be_pickled(app: Any, tasks: Any) -> None:
    """A pickled result is as good as its original, its parents included."""
    app.set_current()  # whose backend an unpickled result asks
    result = celery.chain(tasks.add.s(1, 1), tasks.add.s(1))()
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result
    assert copy.parent == result.parent
    assert copy.get(timeout=TIMEOUT_S) == 3
    assert copy.parent.get(timeout=TIMEOUT_S) == 2


def test_a_result_travels_as_a_tuple(app: Any, tasks: Any) -> None:
    """`as_tuple` and `result_from_tuple` are each other's inverse."""
    result = celery.chain(tasks.add.s(1, 1), tasks.add.s(1))()
    again = celery.result.result_from_tuple(result.as_tuple(), app=app)
    assert (again, again.parent) == (result, result.parent)
    assert again.get(timeout=TIMEOUT_S) == 3


def test_waiting_within_a_task_is_refused(tasks: Any) -> None:
    """`get` within a task raises, as Celery's rule is, and works where it is allowed."""
    with pytest.raises(RuntimeError, match=r"Never call result\.get\(\) within a task"):
        tasks.wait_within.delay(1).get(timeout=TIMEOUT_S)
    assert tasks.wait_within_all_the_same.delay(1).get(timeout=TIMEOUT_S) == 1


def test_eager_tasks_need_no_worker(tasks: Any) -> None:
    """`apply` runs a task here; its result is there at once."""
    result = tasks.add.apply((1, 2))
    assert (result.get(), result.state) == (3, "SUCCESS")
    assert tasks.fail.apply(("no",)).state == "FAILURE"


def test_what_a_task_knows_of_itself(tasks: Any) -> None:
    """The id a task sees is the id its caller has; the process is another."""
    result = tasks.who.delay()
    seen = result.get(timeout=TIMEOUT_S)
    assert (seen["id"], seen["root_id"], seen["parent_id"]) == (result.id, result.id, None)
    assert seen["pid"] != os.getpid()
