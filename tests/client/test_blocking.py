"""The guard against waiting inside tasks."""

from __future__ import annotations

import pytest

from resultd import _blocking


def test_blocks_nest_and_restore() -> None:
    """Inside out, and after an error too."""
    assert not _blocking.task_join_will_block()
    with _blocking.denied_join_result():
        with _blocking.allow_join_result():
            _blocking.assert_will_not_block()
        with pytest.raises(RuntimeError, match="within a task"):
            _blocking.assert_will_not_block()
    with pytest.raises(LookupError), _blocking.denied_join_result():
        raise LookupError
    assert not _blocking.task_join_will_block()
