"""Counting what happens often, cheaply: a few list operations, no lock, no label lookup.

Who counts is one thread; who reads may be another and sees a moment's numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence


class Histogram:
    """How often a number was at most each bound.

    seconds = Histogram((0.001, 0.01, 0.1, 1.0))
    seconds.observe(0.02)
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.sum = 0.0

    def observe(self, number: float) -> None:
        """Counts one number."""
        self._counts[bisect_left(self._bounds, number)] += 1
        self.sum += number

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self._counts)

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """(bound, how many were at most that), the last bound infinite."""
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            yield bound, total
