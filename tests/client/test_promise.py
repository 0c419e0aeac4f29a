"""Promises."""

from __future__ import annotations

import pytest

from resultd._promise import Promise


def test_listeners_are_told_once() -> None:
    """Those before, those after; a second fulfilment changes nothing."""
    promise = Promise()
    heard: list[object] = []
    promise.then(heard.append)
    promise(1)
    promise(2)
    promise.then(heard.append)
    assert heard == [1, 1]
    assert (promise.ready, promise.value) == (True, 1)


def test_a_renewed_promise_is_fulfilled_again() -> None:
    """Who was told is not told again; who is being told when it is renewed gets what it was."""
    promise = Promise()
    heard: list[object] = []
    promise.then(lambda _: promise.renew())
    promise.then(heard.append)
    promise(1)
    assert (promise.ready, promise.has_listeners, heard) == (False, False, [1])
    promise.then(heard.append)
    assert promise.has_listeners
    promise(2)
    assert (promise.ready, promise.has_listeners, heard) == (True, False, [1, 2])


def test_what_was_thrown_is_not_renewed() -> None:
    """It failed, and says so to whoever asks."""
    promise = Promise()
    errors: list[BaseException] = []
    promise.throw(KeyError("k"))
    promise.renew()
    promise.then(errors.append, errors.append)
    assert str(errors) == "[KeyError('k')]"


@pytest.mark.parametrize("reason", [KeyError("k"), SystemExit(1)])
def test_a_thrown_exception_goes_to_on_error(
    caplog: pytest.LogCaptureFixture, reason: BaseException
) -> None:
    """Or to the log where there is none."""
    promise = Promise()
    errors: list[BaseException] = []
    promise.then(lambda _: None)
    promise.then(lambda _: None, errors.append)
    promise.throw(reason)
    assert errors == [reason]
    assert "then() callback failed" in caplog.text


def test_an_on_error_that_raises_keeps_nobody_from_being_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not the other listeners, and not whoever fulfils the promise."""
    promise = Promise()
    heard: list[object] = []

    def fail(_: object) -> None:
        raise ValueError("a bug in a listener")

    promise.then(fail, fail)
    promise.then(heard.append)
    promise(1)
    assert heard == [1]
    assert "a bug in a listener" in caplog.text


def test_a_listener_that_exits_keeps_nobody_from_being_told() -> None:
    """The others are told first; then who fulfils the promise gets the first such exception."""
    promise = Promise()
    heard: list[object] = []

    def leave(code: object) -> None:
        raise SystemExit(code)

    promise.then(leave)
    promise.then(heard.append)
    promise.then(lambda _: leave("second"))
    with pytest.raises(SystemExit, match="1"):
        promise(1)
    assert heard == [1]
