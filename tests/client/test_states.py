"""States."""

from __future__ import annotations

from resultd import states


def test_states_compare_by_precedence_and_equal_by_name() -> None:
    """PENDING comes before SUCCESS, a custom state between REVOKED and FAILURE."""
    s = states.state
    assert s("PENDING") < s("SUCCESS")
    assert s("SUCCESS") > s("FAILURE") >= s("FAILURE")
    assert s("REVOKED") <= s("CUSTOM") < s("FAILURE")
    assert s("SUCCESS") == "SUCCESS"
    assert hash(s("SUCCESS")) == hash("SUCCESS")
    assert states.precedence("CUSTOM") == states.NONE_PRECEDENCE
