"""The benchmarks are run small, so that none rots; nothing is said about time."""

from __future__ import annotations

import pytest

from tests.benchmarks.__main__ import BENCHMARKS
from tests.benchmarks.table import Size, put, render


# Celery's takes 13 s alone and 50 beside three of its kind. Longer than its clients wait: who hangs
# says so itself.
@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", BENCHMARKS)
async def test_every_benchmark_runs_and_can_be_written(name: str) -> None:
    """Each benchmark still runs against today's server and gives rows for the page."""
    rows = await BENCHMARKS[name](Size.TINY)
    assert rows
    page = put("# Old\n\n## other\n\nkept\n", {name: render(name, rows)})
    assert "\n## other\n\nkept\n" in page
    for row in rows:
        assert row.work in page
        assert all(sample == sample for sample in row.samples)
