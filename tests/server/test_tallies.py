"""Counting numbers by how large they are."""

from __future__ import annotations

from resultd_server.tallies import Histogram


def test_a_number_counts_under_every_bound_it_does_not_exceed() -> None:
    """A bound includes itself, the last one everything; sum and count are of all numbers."""
    tally = Histogram((1, 10))
    for number in (0.5, 1, 2, 10, 11):
        tally.observe(number)
    assert list(tally.cumulative()) == [(1, 2), (10, 4), (float("inf"), 5)]
    assert (tally.count, tally.sum) == (5, 24.5)
