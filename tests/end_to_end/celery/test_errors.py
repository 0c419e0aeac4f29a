"""What a task raises reaches who waits, and who was to be called in that case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError, TaskRevokedError

from tests.support.celery_tasks import CustomError

TIMEOUT_S = 20.0


def failed(result: Any) -> Exception:
    """Waits for a failure and hands it over."""
    error = result.get(timeout=TIMEOUT_S, propagate=False)
    assert isinstance(error, Exception)
    return error


def test_a_builtin_error_comes_back_as_it_was(tasks: Any) -> None:
    """A builtin exception is raised where it is waited for, class and arguments."""
    result = tasks.fail.delay("one", 2, None)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  `args` say more than a text
        result.get(timeout=TIMEOUT_S)
    assert caught.value.args == ("one", 2, None)
    assert (result.state, result.ready(), result.failed()) == ("FAILURE", True, True)
    assert not result.successful()
    assert isinstance(result.result, ValueError)
    assert "in fail" in result.traceback
    assert result.traceback.rstrip().endswith("ValueError: ('one', 2, None)")
    assert result.date_done is not None


def test_without_arguments(tasks: Any) -> None:
    """An exception without arguments comes back without."""
    assert failed(tasks.fail.delay()).args == ()


def test_an_error_may_be_handed_over(tasks: Any) -> None:
    """With `propagate=False` the exception is returned."""
    error = failed(tasks.fail.delay("no"))
    assert (type(error), error.args) == (ValueError, ("no",))


def test_an_error_of_a_known_class(tasks: Any) -> None:
    """An exception of a class that is loaded here comes back as that class."""
    error = failed(tasks.fail_custom.delay("a", [1, {"b": None}]))
    assert type(error) is CustomError
    assert error.args == ("a", [1, {"b": None}])


def test_an_error_of_an_unknown_module(tasks: Any) -> None:
    """An exception of a module that is not loaded comes back as a class of its name."""
    error = failed(tasks.fail_strangely.delay("a", 1))
    assert type(error).__name__ == "StrangeError"
    assert error.args == ("a", 1)


def test_an_error_of_a_class_within_a_function(tasks: Any) -> None:
    """An exception that Celery has to wrap still tells its name and arguments."""
    error = failed(tasks.fail_locally.delay("a", 1))
    assert "LocalError" in repr(error)
    assert "'a', 1" in str(error)


def test_an_error_with_an_odd_constructor(tasks: Any) -> None:
    """An exception that cannot be made again comes back as an Exception that tells all."""
    error = failed(tasks.fail_oddly.delay())
    assert "OddError" in str(error)
    assert "odd (7)" in str(error)


def test_an_error_that_cannot_be_serialized(tasks: Any) -> None:
    """An argument that no serializer takes comes back as its `repr`."""
    error = failed(tasks.fail_with_unserializable.delay())
    assert type(error) is ValueError
    assert error.args == ("holds", "<class 'object'>")


def test_a_cause_is_told(tasks: Any) -> None:
    """The traceback shows what an error was raised from."""
    result = tasks.fail_with_cause.delay()
    assert type(failed(result)) is RuntimeError
    assert "KeyError: 'the cause'" in result.traceback


def test_a_task_that_is_called_wrongly(app: Any) -> None:
    """A task that is called with too few arguments fails with Python's own error."""
    error = failed(app.send_task("add", (1,)))
    assert type(error) is TypeError
    assert "missing 1 required positional argument: 'y'" in str(error)


def test_an_error_in_a_chain_ends_it(tasks: Any) -> None:
    """Whoever waits for the end of a chain is told of the failure before it."""
    last = chain(tasks.fail.s("first"), tasks.identity.s(), tasks.identity.s())()
    with pytest.raises(ValueError, match="first"):
        last.get(timeout=TIMEOUT_S)
    assert last.parent.parent.state == "FAILURE"


def test_a_failed_parent_is_looked_at_while_waiting(
    tasks: Any, key: str, hear: Callable[[str], str], say: Callable[[str], None]
) -> None:
    """`get` of a task that will never run raises as soon as its parent has failed."""
    last = chain(tasks.fail_when_told.s(key), tasks.identity.s())()
    hear(f"{key}:begun")
    say(key)
    with pytest.raises(CustomError, match="as told"):
        last.get(timeout=TIMEOUT_S)


def test_an_error_in_a_group(tasks: Any) -> None:
    """`get` of a group raises the first failure, or hands all outcomes over in order."""
    result = group(tasks.identity.s(1), tasks.fail.s("no"), tasks.identity.s(3))()
    with pytest.raises(ValueError, match="no"):
        result.get(timeout=TIMEOUT_S)
    first, second, third = result.get(timeout=TIMEOUT_S, propagate=False)
    assert (first, type(second), third) == (1, ValueError, 3)
    assert (result.ready(), result.failed(), result.successful()) == (True, True, False)
    assert (result.completed_count(), result.waiting()) == (2, False)


def test_a_failed_header_fails_the_body(tasks: Any) -> None:
    """The body of a chord fails with a ChordError that names the task and its error."""
    result = chord([tasks.identity.s(1), tasks.fail.s("no")], tasks.xsum.s())()
    error = failed(result)
    assert type(error) is ChordError
    failing = result.parent.results[1].id
    assert str(error) == f"Dependency {failing} raised ValueError('no')"
    assert result.state == "FAILURE"


def test_a_failed_header_raises_its_own_error_first(tasks: Any) -> None:
    """`get` of a body looks at its parents first: they raise what happened to them."""
    result = chord([tasks.identity.s(1), tasks.fail.s("no")], tasks.xsum.s())()
    assert type(failed(result)) is ChordError
    with pytest.raises(ValueError, match="no"):
        result.get(timeout=TIMEOUT_S)
    with pytest.raises(ChordError):
        result.get(timeout=TIMEOUT_S, follow_parents=False)


@pytest.mark.usefixtures("differs_from_redis")
def test_a_failed_inner_chord_fails_the_outer(tasks: Any) -> None:
    """A failure within a chord in a chord's header reaches the outermost body."""
    inner = chord([tasks.fail.s("deep"), tasks.identity.s(1)], tasks.xsum.s())
    error = failed(chord([inner, tasks.identity.s(2)], tasks.xsum.s())())
    assert type(error) is ChordError
    assert "deep" in str(error)


@pytest.mark.usefixtures("differs_from_redis")
def test_a_failed_inner_body_is_told_to_who_waits_for_it(app: Any, tasks: Any) -> None:
    """The body of a failed chord is FAILURE, also where it is a part of another chord."""
    inner = chord([tasks.fail.s("deep"), tasks.identity.s(1)], tasks.xsum.s())
    outer = chord([inner, tasks.identity.s(2)], tasks.xsum.s())()
    failed(outer)
    assert app.AsyncResult(outer.parent.results[0].id).state == "FAILURE"


def test_a_failed_chain_in_a_header_fails_the_body(tasks: Any) -> None:
    """A chain that breaks in a chord's header is a part that failed."""
    header = [chain(tasks.fail.s("midway"), tasks.identity.s()), tasks.identity.s(2)]
    error = failed(chord(header, tasks.xsum.s())())
    assert type(error) is ChordError
    assert "midway" in str(error)


def test_what_comes_after_a_failed_chord_fails(tasks: Any) -> None:
    """Whoever waits for what comes after a chord is told of a failure in its header."""
    header = [tasks.fail.s("no"), tasks.identity.s(1)]
    last = chain(chord(header, tasks.xsum.s()), tasks.identity.s())()
    body = last.parent
    with pytest.raises((ValueError, ChordError)) as caught:
        last.get(timeout=TIMEOUT_S)
    of_body = f"Dependency {body.parent.results[0].id} raised ValueError('no')"
    # Celery looks at one parent after the other. The header's first; but where it fails a moment
    # after that look, the body has failed when that is looked at.
    errors = {(ValueError, "no"), (ChordError, of_body)}
    assert (type(caught.value), str(caught.value)) in errors
    error = failed(body)
    assert (type(error), str(error)) == (ChordError, of_body)
    with pytest.raises(ValueError, match=r"^no$"):  # both have failed now
        last.get(timeout=TIMEOUT_S)


def test_a_failed_body(tasks: Any) -> None:
    """A body that fails of itself fails with its own error."""
    error = failed(chord([tasks.identity.s(1)] * 2, tasks.fail.s())())
    assert (type(error), error.args) == (ValueError, ([1, 1],))


def test_errbacks_of_a_chord(tasks: Any, key: str, hear: Callable[[str], str]) -> None:
    """The errback of a chord's body is called once, with the ChordError."""
    body = tasks.xsum.s().on_error(tasks.told_error.s(key))
    result = chord([tasks.identity.s(1), tasks.fail.s("no")], body)()
    assert hear(key) == f"{result.id} ChordError: {failed(result)}"


def test_an_errback_is_told(tasks: Any, key: str, hear: Callable[[str], str]) -> None:
    """An errback is called with the request, the error and the traceback."""
    result = tasks.fail.apply_async(("no",), link_error=tasks.told_error.s(key))
    assert hear(key) == f"{result.id} ValueError: no"


def test_an_errback_of_the_old_kind(tasks: Any, hear: Callable[[str], str]) -> None:
    """An errback that takes one argument is a task of its own, called with the id."""
    result = tasks.fail.apply_async(("no",), link_error=tasks.told_id.s())
    assert hear(f"failed:{result.id}") == result.id


def test_errbacks_of_a_chain(tasks: Any, key: str, hear: Callable[[str], str]) -> None:
    """An errback of a whole chain is called by whichever task fails."""
    signature = chain(tasks.identity.s(1), tasks.fail.s("no"), tasks.identity.s())
    last = signature.apply_async(link_error=tasks.told_error.s(key))
    assert hear(key) == f"{last.parent.id} ValueError: (1, 'no')"


def test_errbacks_of_a_group(tasks: Any, key: str, hear: Callable[[str], str]) -> None:
    """An errback of a group is called for each member that fails."""
    signature = group(tasks.fail.s("a"), tasks.identity.s(1), tasks.fail.s("b"))
    signature.link_error(tasks.told_error.s(key))
    result = signature()
    told = {hear(key), hear(key)}
    assert told == {
        f"{result.results[0].id} ValueError: a",
        f"{result.results[2].id} ValueError: b",
    }


def test_a_callback_is_called_with_the_value(
    tasks: Any, key: str, hear: Callable[[str], str]
) -> None:
    """`link` calls a task with the value, and its result is a child of the first."""
    result = tasks.add.apply_async((1, 2), link=tasks.told.s(key))
    assert hear(key) == "3"
    assert result.get(timeout=TIMEOUT_S) == 3
    (child,) = result.children
    assert child.get(timeout=TIMEOUT_S) is None


def test_several_callbacks(tasks: Any, key: str, hear: Callable[[str], str]) -> None:
    """Every callback is called, and their results are the task's children."""
    link = [tasks.told.s(key), tasks.add.s(10)]
    result = tasks.add.apply_async((1, 2), link=link)
    assert hear(key) == "3"
    assert result.get(timeout=TIMEOUT_S) == 3
    (children,) = result.children  # Celery calls several callbacks as a group
    assert children.get(timeout=TIMEOUT_S) == [None, 13]


def test_an_error_in_a_replaced_task(tasks: Any) -> None:
    """A task that is replaced fails as its replacement does."""
    error = failed(tasks.replace_with.delay(tasks.fail.s("instead")))
    assert (type(error), error.args) == (ValueError, ("instead",))


def test_a_revoked_part_fails_its_chord(tasks: Any) -> None:
    """A header task that is revoked before it runs fails the body."""
    parts = [tasks.identity.s(1), tasks.identity.s(2).set(countdown=1)]
    result = chord(parts, tasks.xsum.s())()
    revoked = result.parent.results[1]
    revoked.revoke()
    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=TIMEOUT_S)
    error = failed(result)
    assert str(error) == f"Dependency {revoked.id} raised TaskRevokedError('revoked')"
