"""Following files: what changes is taken once it has settled, what is wrong is said once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from resultd_server.access import reload
from resultd_server.config import ConfigError
from tests.support.in_process import until


class Files:
    """Contents that change from one look to the next; the last stays."""

    what = "files"

    def __init__(self, *looks: str) -> None:
        self.looks = list(looks)
        self.taken: list[str] = []
        self.told = self.refused = 0
        self.early = 0

    def read(self) -> str:
        """The next look. "!…" cannot be read, "!!…" for a reason that nobody expects."""
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if found.startswith("!!"):
            raise ZeroDivisionError(found)
        if found.startswith("!"):
            raise ConfigError(found)
        return found

    def take(self, contents: str) -> None:
        """Takes all but "?…", of which "??…" is not foreseen, and "soon" for `early` times."""
        if contents.startswith("??"):
            raise ZeroDivisionError(contents)
        if contents.startswith("?"):
            raise ConfigError(contents)
        if contents == "soon" and self.early > 0:
            self.early -= 1
            raise ConfigError("not yet")
        self.taken.append(contents)

    def tell(self) -> None:
        """Something was taken."""
        self.told += 1

    def refuse(self) -> None:
        """Something was not."""
        self.refused += 1


@contextlib.asynccontextmanager
async def following(files: Files) -> AsyncIterator[None]:
    """Follows until the last look has been seen a few times."""
    task = asyncio.create_task(reload.follow(files, "seen", files.tell, files.refuse))
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
        (("!!", "!!", "a", "a", "a"), ["a"]),
        (("??", "??", "a", "a", "a"), ["a"]),
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


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("!unreadable", "!unreadable"),
        ("?senseless", "?senseless"),
        ("!!bug", "ZeroDivisionError was raised."),
        ("??bug", "ZeroDivisionError was raised."),
    ],
)
async def test_what_is_wrong_is_said_once_and_counted_each_time(wrong: str, why: str) -> None:
    """However often it is looked at: one line, with the reason, and a traceback of what nobody
    foresaw; nothing is taken.
    """
    files = Files(wrong)
    with capture_logs() as logs:
        async with following(files):
            assert files.taken == []
            await until(lambda: files.refused > 3)
    [line] = logs
    assert (line["log_level"], line["what"], line["why"]) == ("error", "files", why)
    assert (line["exc_info"] is not None) is ("bug" in wrong)


async def test_what_was_too_early_is_taken_when_it_is_time() -> None:
    """Contents that a clock refuses are tried again without having changed."""
    files = Files("soon")
    files.early = 3
    with capture_logs() as logs:
        async with following(files):
            await until(lambda: files.told == 1)
    assert (files.taken, files.refused) == (["soon"], 3)
    events = [line["event"] for line in logs]
    assert events == ["not reloaded, the old one stays", "reloaded"]


async def test_each_reason_is_said_when_it_is_another() -> None:
    """Wrong, wrong otherwise, right and wrong again: three lines of error."""
    files = Files(*(3 * ["?one"] + 3 * ["?two"] + 3 * ["a"] + 3 * ["?one"]))
    with capture_logs() as logs:
        async with following(files):
            await until(lambda: len(logs) == 4)
    assert [line.get("why") for line in logs] == ["?one", "?two", None, "?one"]
