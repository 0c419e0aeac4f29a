"""Which signal an exception is of."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import pytest

from resultd import _signals


class Limit(Exception):
    """What a handler raises."""


def fail(*_: object) -> NoReturn:
    """A handler, and a function like any other."""
    raise Limit


class Handler:
    """A handler that is no function."""

    def __call__(self, *_: object) -> NoReturn:
        """Raise."""
        raise Limit


@pytest.fixture
def handle() -> Iterator[Callable[[Any], object]]:
    """Sets the handler of a signal."""
    before = signal.getsignal(signal.SIGUSR1)
    yield partial(signal.signal, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def error_of(work: Callable[[], object]) -> BaseException:
    """What it raises."""
    try:
        work()
    except BaseException as error:  # noqa: BLE001 (looked at by the test)
        return error
    raise AssertionError("it raised nothing")


@pytest.mark.parametrize("handler", [fail, partial(fail, 1), Handler()])
def test_what_a_handler_raised_is_of_its_signal(
    handle: Callable[[Any], object], handler: Callable[..., NoReturn]
) -> None:
    """Whatever is called there; the same from elsewhere is of none."""
    other = error_of(handler)
    assert _signals.raised_by(other) is None
    handle(handler)
    raised = error_of(lambda: signal.raise_signal(signal.SIGUSR1))
    assert _signals.raised_by(raised) == signal.SIGUSR1


def test_ctrl_c_is_an_interrupt() -> None:
    """Its handler is C's, and stands in no traceback."""
    assert _signals.raised_by(error_of(lambda: signal.raise_signal(signal.SIGINT))) == 2
    assert _signals.raised_by(error_of(lambda: int("x"))) is None
