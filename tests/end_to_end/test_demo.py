"""The demo, smaller: what `make demo` shows, held to its summary."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

SCRIPT = "from resultd.cli import main; main()"
SMALL = ("--files", "40", "--pace", "0.05", "--away", "0.2", "--workers", "2")


@pytest.fixture(scope="module")
def demo() -> subprocess.CompletedProcess[str]:
    """One run, as a person without a terminal sees it."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, "demo", *SMALL],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )


def row(demo: subprocess.CompletedProcess[str], name: str) -> str:
    """Return what the summary says about something."""
    found = re.search(rf"^ {name}  +(.*?) *$", demo.stdout, re.MULTILINE)
    assert found is not None, demo.stdout
    return found[1]


def test_the_demo_adds_up(demo: subprocess.CompletedProcess[str]) -> None:
    """Every file has its result once, though the server was killed; the exit code says so."""
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert row(demo, "files") == "40, 40 with a result"
    assert (row(demo, "lost"), row(demo, "duplicates")) == ("0", "0")
    assert row(demo, "it") == "adds up"


def test_words_and_failures_are_those_of_the_files(
    demo: subprocess.CompletedProcess[str],
) -> None:
    """The streamed numbers are the ones counted afterwards, by other means."""
    words, counted = re.findall(r"[\d,]{2,}", row(demo, "words"))
    assert words == counted
    failures, broken = re.findall(r"\d+(?=;|$)", row(demo, "failures"))
    assert failures == broken
    assert int(failures) >= 3


def test_failures_come_with_their_remote_tracebacks(
    demo: subprocess.CompletedProcess[str],
) -> None:
    """Each failure is printed with the stack of the process it happened in."""
    failures = re.findall(r"^FAILURE on (python|node)-", demo.stdout, re.MULTILINE)
    assert len(failures) >= 3
    traces = demo.stdout.count("UnicodeDecodeError: 'utf-8' codec") // 2  # the line and the stack
    assert traces == failures.count("python")


def test_the_results_come_from_several_processes(demo: subprocess.CompletedProcess[str]) -> None:
    """Results by worker add up to the files, and more than one worker has some."""
    by_worker = dict(part.split() for part in row(demo, "results by worker").split(", "))
    assert sum(map(int, by_worker.values())) == 40
    assert len(by_worker) >= 2


def test_the_server_was_killed_in_the_middle(demo: subprocess.CompletedProcess[str]) -> None:
    """The kill comes after half of the results and before all of them."""
    at = demo.stdout.index("SIGKILL to the server")
    assert "  20/40 done" in demo.stdout[:at]
    assert "  40/40 done" in demo.stdout[at:]
    assert "the server is back" in demo.stdout[at:]
