"""Pauses between tries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from resultd import _backoff


@given(st.integers(0, 10_000), st.none() | st.floats(0, 60))
def test_pauses_are_bounded_and_heed_the_server(tries: int, least: float | None) -> None:
    """Between nothing and the cap; not less than the server asks, and not much more."""
    pause = _backoff.full_jitter(tries, least)
    upper = max(min(_backoff.CAP, _backoff.FIRST * 2 ** min(tries, 16)), (least or 0) * 1.5)
    assert (least or 0) <= pause <= upper
