"""One task at a time on a real worker: values, states, retries, who else may look."""

from __future__ import annotations

from typing import Any

TIMEOUT_S = 20.0


def test_a_value_comes_back(tasks: Any) -> None:
    """What a task returns is what `get` returns."""
    assert tasks.add.delay(2, 3).get(timeout=TIMEOUT_S) == 5
