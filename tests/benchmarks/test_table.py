"""What the table says of a target."""

from __future__ import annotations

import pytest

from tests.benchmarks.table import (
    Row,
    Target,
    at_least,
    at_most,
    figure_at_most,
    left_out,
)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (at_most(2), "≤ 2 ×: met"),
        (at_most(1.9), "≤ 1.9 ×: **missed**"),
        (at_least(2), "≥ 2 ×: met"),
        (at_least(2.1), "≥ 2.1 ×: **missed**"),
        (figure_at_most(20), "≤ 20 µs: met"),
        (figure_at_most(19.9), "≤ 19.9 µs: **missed**"),
    ],
)
def test_a_target_is_met_by_the_median(target: Target, said: str) -> None:
    """Of the rounds' ratios, or of the figures where it is one: what one round does is nothing."""
    row = Row("work", "µs", [10, 20, 900], [10, 10, 30], "other", target)
    assert row.markdown().endswith(f"| {said} |")
    assert said in row.line()


def test_a_row_without_a_yardstick_misses_a_ratio() -> None:
    """What was not measured is not met."""
    assert not at_most(2).met(Row("work", "µs", [1.0]))
    assert not at_least(2).met(Row("work", "µs", [1.0]))


def test_what_was_left_out_says_why() -> None:
    """A row that could not be measured stands in the table with its reason."""
    row = left_out("work", "no etcd")
    assert row.line() == "work: left out: no etcd"
    assert "left out: no etcd" in row.markdown()
    assert row.markdown().count("|") == Row("work", "µs", [1.0]).markdown().count("|")
