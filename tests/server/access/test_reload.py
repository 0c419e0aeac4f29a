"""Following files: what changes is taken once it has settled, what is wrong is said once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from resultd_server.access import reload
from resultd_server.config import ConfigError


class Files:
    """Contents that change from one look to the next; the last stays."""

    what = "files"

    def __init__(self, *looks: str) -> None:
        self.looks = list(looks)
        self.taken: list[str] = []
        self.told = 0

    def read(self) -> str:
        """The next look. "!…" cannot be read."""
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if found.startswith("!"):
            raise ConfigError(found)
        return found

    def take(self, contents: str) -> None:
        """Takes all but "?…"."""
        if contents.startswith("?"):
            raise ConfigError(contents)
        self.taken.append(contents)

    def tell(self) -> None:
        """Something was taken."""
        self.told += 1


@contextlib.asynccontextmanager
async def following(files: Files) -> AsyncIterator[None]:
    """Follows until the last look has been seen a few times."""
    task = asyncio.create_task(reload.follow(files, "seen", files.tell))
    try:
        while len(files.looks) > 1:  # noqa: ASYNC110  the files are read, and say nothing
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks in quick succession."""
    monkeypatch.setattr(reload, "PERIOD_S", 0.001)
    monkeypatch.setattr(reload, "SETTLED_S", 0.001)


@pytest.mark.parametrize(
    ("looks", "taken"),
    [
        (("seen", "seen"), []),
        (("seen", "a", "a", "a"), ["a"]),
        (("a", "a", "seen", "seen", "seen"), ["a", "seen"]),
        (("", "a", "a", "a"), ["a"]),
        (("!", "a", "a", "a"), ["a"]),
        (("!", "!", "a", "a", "a"), ["a"]),
        (("?", "?", "a", "a", "a"), ["a"]),
        (("?", "?", "seen", "seen", "seen"), ["seen"]),
    ],
    ids=repr,
)
async def test_what_changes_is_taken_when_it_has_settled(
    looks: tuple[str, ...], taken: list[str]
) -> None:
    """Twice the same and not what it was: taken, and told; what is seen half-written is not."""
    files = Files(*looks)
    async with following(files):
        assert files.taken == taken
        assert files.told == len(taken)


@pytest.mark.parametrize("wrong", ["!unreadable", "?senseless"])
async def test_what_is_wrong_is_said_once(wrong: str) -> None:
    """However often it is looked at: one line, with the reason; nothing is taken."""
    files = Files(wrong)
    with capture_logs() as logs:
        async with following(files):
            assert files.taken == []
    [line] = logs
    assert (line["log_level"], line["what"], line["why"]) == ("error", "files", wrong)
