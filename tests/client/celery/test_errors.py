"""The error of a wait that ran out of time."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import celery.exceptions
import pytest

import resultd.celery
from resultd import errors


@pytest.mark.parametrize(
    "expected",
    [
        celery.exceptions.TimeoutError,
        celery.exceptions.TaskError,
        errors.TimeoutError,
        builtins.TimeoutError,
        resultd.celery.TimeoutError,
    ],
)
def test_whoever_catches_a_timeout_catches_it(
    app: Any, new_id: Callable[[], str], expected: type[Exception]
) -> None:
    """Celery's class, the client's, and the builtin one that people write by mistake."""
    with pytest.raises(expected, match=r"^The operation timed out\.$"):
        app.AsyncResult(new_id()).get(timeout=0.01)
