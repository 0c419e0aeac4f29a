"""How many lines of a kind there may be, and that the others are counted."""

from __future__ import annotations

from resultd_server.log_rate import LINES_PER_SECOND, Kind, Rates

FULL = Kind("refused", "reason", "STORE_FULL")
DENIED = Kind("refused", "reason", "NAMESPACE_DENIED")


class Clock:
    """A clock that stands until it is moved."""

    now_s = 0.0

    def __call__(self) -> float:
        """Seconds since some time."""
        return self.now_s


def test_so_many_lines_of_a_kind_a_second() -> None:
    """One more waits for the next second; another kind has as many of its own."""
    clock = Clock()
    rates = Rates(clock)
    assert [rates.admit(FULL) for _ in range(LINES_PER_SECOND + 1)].count(False) == 1
    assert rates.admit(DENIED)
    clock.now_s = 0.9
    assert not rates.admit(FULL)
    clock.now_s = 1.0
    assert rates.admit(FULL)


def test_what_is_left_out_is_told_once() -> None:
    """By its kind, whenever it is asked for; what was admitted is not in it."""
    clock = Clock()
    rates = Rates(clock)
    for second in range(2):
        clock.now_s = float(second)
        for _ in range(LINES_PER_SECOND + 3):
            rates.admit(FULL)
        rates.admit(DENIED)
    assert rates.left_out() == {FULL: 6}
    assert rates.left_out() == {}
