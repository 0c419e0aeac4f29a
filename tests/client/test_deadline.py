"""Deadlines."""

from __future__ import annotations

import pytest

from resultd._deadline import Deadline


def test_none_never_runs_out_and_zero_has() -> None:
    """What is left is never below 0."""
    endless, over, long = Deadline(None), Deadline(0), Deadline(60)
    endless.check()
    long.check()
    assert endless.left() is None
    assert (endless.within(5), over.within(5), long.within(5)) == (5, 0.0, 5)
    assert Deadline(-1).left() == 0.0
    with pytest.raises(TimeoutError, match="late"):
        over.check("late")
