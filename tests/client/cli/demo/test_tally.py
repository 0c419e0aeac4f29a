"""Laws of the demo's accounts: nothing wrong goes unnoticed."""

from __future__ import annotations

from typing import Any

import pytest

from resultd.cli.demo.files import Expected
from resultd.cli.demo.tally import Tally, Verdict, judge

PATHS = {"t1": "a.py", "t2": "b.py"}
EXPECTED = Expected({"a.py": 3}, frozenset({"b.py"}))


def good() -> list[dict[str, Any]]:
    """Return what should arrive."""
    return [
        {"task_id": "t1", "worker": "w", "status": "SUCCESS", "result": {"words": 3}},
        {"task_id": "t2", "worker": "w", "status": "FAILURE", "result": ValueError()},
    ]


def judged(arrived: list[dict[str, Any]], stored: list[dict[str, Any]] | None = None) -> Verdict:
    """Hold what arrived against what should."""
    tally = Tally()
    for meta in arrived:
        tally.add(meta)
    return judge(tally, PATHS, EXPECTED, good() if stored is None else stored)


def test_what_is_as_expected_adds_up() -> None:
    """Each result once, the right numbers, the right failures, the same in the store."""
    assert judged(good()) == Verdict(0, 0, ())
    assert judged(good()).adds_up


def test_a_lost_result_is_noticed() -> None:
    """A task without a result is lost."""
    assert judged(good()[:1]).lost == 1


def test_a_repeated_result_is_noticed() -> None:
    """A result seen twice is a duplicate."""
    assert judged([*good(), good()[0]]).duplicates == 1


@pytest.mark.parametrize(
    ("nth", "changes"),
    [
        (0, {"result": {"words": 4}}),
        (0, {"status": "FAILURE", "result": ValueError()}),
        (1, {"status": "SUCCESS", "result": {"words": 0}}),
    ],
)
def test_a_wrong_result_is_noticed(nth: int, changes: dict[str, Any]) -> None:
    """A wrong count, a file that should not have failed, one that should have."""
    arrived = good()
    arrived[nth] |= changes
    assert not judged(arrived, arrived).adds_up


def test_a_store_that_disagrees_with_the_stream_is_noticed() -> None:
    """What was streamed has to be what is stored."""
    assert not judged(good(), good()[:1]).adds_up


def test_the_longest_gap_is_looked_for_around_the_outage_only() -> None:
    """A gap that ended before the outage, or began after it, is not its doing."""
    tally = Tally(times=[0, 10, 11, 14, 15, 30])
    assert tally.longest_gap(12, 13) == 3
