"""Laws about figures that pages quote from the benchmarks: a new run changes both, or none."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.tooling.repository import ROOT

DURABLE = "Celery on Redis, appendfsync always"
ECHO = "bare grpc.aio echo of the same bytes"
PUTS = "raw LMDB puts, 128 a durable commit"
_MEDIAN = re.compile(r"[\d.,]+")


class Quote(NamedTuple):
    """Words of a page whose groups are figures of a row: `ours`, `theirs`, `ratio`."""

    page: str
    words: str
    work: str
    yardstick: str


QUOTES = (
    Quote(
        "celery",
        r"`delay\(\)\.get\(\)`, median \| (?P<theirs>\S+) ms \| (?P<ours>\S+) ms: (?P<ratio>\S+) ×",
        "Celery: delay().get(), p50",
        DURABLE,
    ),
    Quote(
        "celery",
        r"`store_result\(\)` \| (?P<theirs>\S+) ms \| (?P<ours>\S+) ms: (?P<ratio>\S+) ×",
        "Celery: store_result()",
        DURABLE,
    ),
    Quote(
        "celery",
        r"stored to the body called \| (?P<theirs>\S+) ms \| (?P<ours>\S+) ms: (?P<ratio>\S+) ×",
        "Celery: chord of 1,000: last part stored → body called",
        DURABLE,
    ),
    Quote(
        "celery",
        r"end to the body called \| (?P<theirs>\S+) ms \| (?P<ours>\S+) ms: (?P<ratio>\S+) ×",
        "Celery: chord of 1,000: last part's end → body called",
        DURABLE,
    ),
    Quote(
        "operating",
        r"A StoreResult of 64 callers costs [^,]+, (?P<ours>\S+) µs",
        "StoreResult, 64 callers: server CPU a call",
        ECHO,
    ),
    Quote(
        "operating",
        r"In batches of 128 a result costs (?P<ours>\S+) µs",
        "BatchStoreResults of 128: server CPU a result",
        PUTS,
    ),
)


def measured(work: str, yardstick: str) -> dict[str, float]:
    """The medians of a row of the benchmarks. Raises StopIteration: there is none."""
    rows = (
        line.strip("| ").split(" | ")
        for line in (ROOT / "docs" / "benchmarks.md").read_text().splitlines()
    )
    _, _, ours, _, theirs, ratio, _ = next(
        row for row in rows if row[0] == work and row[3] == yardstick
    )
    return {"ours": median(ours), "theirs": median(theirs), "ratio": median(ratio)}


def median(text: str) -> float:
    """The first figure of a cell: before the least and the greatest."""
    found = _MEDIAN.search(text)
    assert found is not None, text
    return float(found[0].replace(",", ""))


@pytest.mark.parametrize("quote", QUOTES, ids=lambda quote: f"{quote.page}: {quote.work}")
def test_what_a_page_quotes_was_measured(quote: Quote) -> None:
    """Each figure is the benchmarks', rounded to as many places as the page gives."""
    page = " ".join((ROOT / "docs" / f"{quote.page}.md").read_text().split())
    said = re.search(quote.words, page)
    assert said is not None
    figures = measured(quote.work, quote.yardstick)
    for name, text in said.groupdict().items():
        places = len(text.partition(".")[2])
        # The benchmarks' own figure is rounded, to three digits.
        slack = 0.5 * 10**-places + 0.005 * figures[name]
        assert abs(float(text) - figures[name]) <= slack, (name, text, figures[name])
