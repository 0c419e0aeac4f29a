"""Laws of what the demo shows."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from resultd import TaskError
from resultd.cli.demo.screen import Screen


def shown(terminal: bool) -> tuple[Screen, io.StringIO]:
    """Return a screen of ten results, and what it prints into."""
    out = io.StringIO()
    return Screen(10, Console(file=out, force_terminal=terminal, width=100)), out


def test_without_a_terminal_there_are_plain_lines() -> None:
    """A log gets a line each tenth of the way and no control characters."""
    screen, out = shown(terminal=False)
    with screen:
        for done in range(1, 11):
            screen.landed(done, 0, done * 1000)
    assert "  10/10 done, 0 failed, 10,000 words" in out.getvalue()
    assert len(out.getvalue().splitlines()) == 10
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_there_is_a_bar() -> None:
    """A person sees one moving bar instead of lines."""
    screen, out = shown(terminal=True)
    with screen:
        screen.landed(10, 1, 5)
    assert "\x1b" in out.getvalue()
    assert "1 failed, 5 words" in out.getvalue()


def test_a_failure_is_shown_with_its_remote_traceback() -> None:
    """Which file, on which worker, what and where; what the worker wrote cannot steer."""
    meta: dict[str, Any] = {
        "worker": "w1",
        "result": TaskError("E", "no"),
        "traceback": "line [red]7\x1b[2J",
        "progress": None,
    }
    screen, out = shown(terminal=False)
    screen.failure("a.py", meta)
    assert "FAILURE on w1: a.py: E: no" in out.getvalue()
    assert "    line [red]7\\x1b[2J" in out.getvalue()
    assert "\x1b" not in out.getvalue()
