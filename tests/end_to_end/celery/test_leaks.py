"""A client process that lives long, a twentieth of `python -m tests.campaigns.leaks`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns import leaks

SIZE = 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("differs_from_redis", "redis_server")
async def test_a_client_holds_no_more_than_after_its_warm_up(tmp_path: Path) -> None:
    """1,000 gets, 100 groups and 10 chords leave nothing: no memory, wait, stream or thread."""
    outcome = await leaks.run(SIZE, tmp_path)
    assert outcome.leaks() == []
