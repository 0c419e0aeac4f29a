"""Where log lines go: whole lines or none, and nobody waits for them or fails by them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from resultd_server import log_sink
from resultd_server.log_sink import LINE_BYTES_MAX, LINES_MAX, Sink
from tests.support.results import until

PIPE_BYTES = 4_096


class Pipe:
    """A small pipe, and a sink that writes into it."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.sink = a_sink(self.write_end)

    def lines(self) -> list[str]:
        """All that comes until every writer has closed it, or the end of this sink."""
        said = b""
        closing = threading.Thread(target=self._close)
        closing.start()
        while not said.endswith(b"the end\n"):
            some = os.read(self.read_end, 65_536)
            assert some
            said += some
        closing.join()
        return said.decode().splitlines()[:-1]

    def _close(self) -> None:
        self.sink.close()
        os.write(self.write_end, b"the end\n")

    def close_ends(self) -> None:
        """Nobody reads it any more, or writes."""
        for end in (self.read_end, self.write_end):
            if end >= 0:
                os.close(end)


def a_sink(descriptor: int) -> Sink:
    """A sink that says simply how many were lost."""
    return Sink(descriptor, lost="{} lost".format)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe that nobody reads so far."""
    made = Pipe()
    yield made
    made.close_ends()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[Sink, Path]]:
    """A sink that writes into a file."""
    path = tmp_path / "log"
    with path.open("ab") as file:
        sink = a_sink(file.fileno())
    yield sink, path  # the file is closed: the sink has its own
    sink.close()


def test_lines_are_written_in_their_order(log: tuple[Sink, Path]) -> None:
    """Each with its end, whoever put them; at the close all are there."""
    sink, path = log
    for number in range(1_000):
        sink.put(f"line {number} ü")
    sink.close()
    assert path.read_text().splitlines() == [f"line {number} ü" for number in range(1_000)]
    assert sink.lost == 0


def test_what_is_urgent_is_there_at_once(
    log: tuple[Sink, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever said it goes on when it is written, with all that was said before."""
    monkeypatch.setattr(log_sink, "FLUSH_S", 20.0)
    sink, path = log
    sink.put("before")
    sink.put("urgent", urgent=True)
    assert path.read_text() == "before\nurgent\n"


def test_what_nobody_reads_holds_nobody_up(pipe: Pipe) -> None:
    """So much waits and no more; when somebody reads it is there, and what was lost is told."""
    for number in range(10 * LINES_MAX):
        pipe.sink.put(str(number))
    lines = pipe.lines()
    kept = [int(line) for line in lines if line.isdecimal()]
    told = [int(line.removesuffix(" lost")) for line in lines if not line.isdecimal()]
    assert kept == sorted(set(kept))
    assert sum(told) == pipe.sink.lost == 10 * LINES_MAX - len(kept)
    assert len(kept) <= 2 * LINES_MAX


def test_what_waits_is_bounded_in_bytes(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few long lines are as much as many short ones."""
    monkeypatch.setattr(log_sink, "BYTES_MAX", 10_000)
    for _ in range(100):
        pipe.sink.put("x" * 999)
    assert pipe.sink.lost >= 80
    assert len(pipe.lines()) == 100 - pipe.sink.lost + 1


def test_what_is_urgent_has_room_where_nothing_else_has(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of other lines does not take the place of the one that says why it ended."""
    monkeypatch.setattr(log_sink, "FLUSH_S", 0.01)
    for _ in range(2 * LINES_MAX):
        pipe.sink.put("x")
    lost = pipe.sink.lost
    pipe.sink.put("why", urgent=True)
    assert pipe.sink.lost == lost > 0
    assert "why" in pipe.lines()


def test_only_one_waits_for_a_log_that_is_stuck(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is urgent waits in vain once, and again only when all is written."""
    monkeypatch.setattr(log_sink, "FLUSH_S", 0.01)
    pipe.sink.put("x" * PIPE_BYTES + "more than there is room for", urgent=True)
    monkeypatch.setattr(log_sink, "FLUSH_S", 3_600.0)
    pipe.sink.put("nobody waits for it", urgent=True)
    assert os.read(pipe.read_end, 2 * PIPE_BYTES)
    until(lambda: not pipe.sink._behind)
    pipe.sink.put("but for this", urgent=True)
    assert os.read(pipe.read_end, PIPE_BYTES).endswith(b"it\nbut for this\n")


def test_who_reads_no_more_is_nobodys_trouble(pipe: Pipe) -> None:
    """A reader that has gone: lines are lost, and counted."""
    os.close(pipe.read_end)
    pipe.read_end = -1
    for _ in range(3):
        pipe.sink.put("for nobody", urgent=True)
    pipe.sink.close()
    pipe.sink.put("at the end")
    assert pipe.sink.lost == 4


FULL_DISK = """
import resource, sys, time
from resultd_server.log_sink import Sink

sink = Sink(2, lost="{} lost".format)
sink.put("first", urgent=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
sink.put("only in part", urgent=True)
sink.put("not at all", urgent=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sink.put("there is room again", urgent=True)
sink.close()
"""


def test_after_half_a_line_the_next_begins_anew(tmp_path: Path) -> None:
    """A disk that is full for a moment costs the lines of that moment, and it is told how many."""
    path = tmp_path / "log"
    with path.open("ab") as log:
        subprocess.run([sys.executable, "-c", FULL_DISK], stderr=log, check=True, timeout=30)
    assert path.read_text() == "first\nonly\nthere is room again\n2 lost\n"


def test_a_line_is_told_lost_without_another(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second it is tried to say how many were lost, until it can be written: once."""
    monkeypatch.setattr(log_sink, "TELL_S", 0.01)
    monkeypatch.setattr(log_sink, "BYTES_MAX", 10)
    sink = a_sink(pipe.write_end)
    sink.put("too long for that")
    assert os.read(pipe.read_end, 100) == b"1 lost\n"
    sink.close()
    assert pipe.lines() == []


def test_lines_of_several_processes_stay_whole(pipe: Pipe) -> None:
    """The longest there may be, into a pipe that is read slowly: none stands in another."""
    sinks = [a_sink(pipe.write_end) for _ in range(3)]
    for _ in range(100):
        for letter, sink in zip("abc", sinks, strict=True):
            sink.put(letter * (LINE_BYTES_MAX - 1))
            sink.put(letter)
    said = b""
    while len(said) < 3 * 100 * (LINE_BYTES_MAX + 2):
        said += os.read(pipe.read_end, 3_000)
    assert {line.decode() for line in said.splitlines()} == {
        line for letter in "abc" for line in (letter, letter * (LINE_BYTES_MAX - 1))
    }
    assert [sink.lost for sink in sinks] == [0, 0, 0]


def test_a_pipe_that_does_not_block_loses_nothing(pipe: Pipe) -> None:
    """Whoever shares it may have made it so."""
    os.set_blocking(pipe.write_end, False)
    for number in range(2_000):
        pipe.sink.put(f"line {number}")
    os.set_blocking(pipe.read_end, True)
    said = b""
    while not said.endswith(b"line 1999\n"):
        said += os.read(pipe.read_end, 100)
    assert len(said.splitlines()) == 2_000


def test_what_is_said_after_the_close_is_written(pipe: Pipe) -> None:
    """While the interpreter takes itself apart objects may complain; unless it would block."""
    pipe.sink.close()
    pipe.sink.close()
    pipe.sink.put("late")
    while not pipe.sink.lost:
        pipe.sink.put("until it is full")
    assert os.read(pipe.read_end, 100).startswith(b"late\n")


def test_who_writes_does_not_wait_for_itself(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread itself may have something urgent to say: objects that it frees, or what is due."""
    monkeypatch.setattr(log_sink, "TELL_S", 0.01)
    monkeypatch.setattr(log_sink, "FLUSH_S", 3_600.0)
    said: list[str] = []

    def due() -> None:
        if not said:
            said.append("due")
            sink.put("due", urgent=True)

    sink = Sink(pipe.write_end, lost=str, every_second=due)
    assert os.read(pipe.read_end, 100) == b"due\n"
    sink.close()


def test_a_process_ends_though_nobody_reads(pipe: Pipe) -> None:
    """It tries for CLOSE_S, and ends with what it was to end with."""
    program = (
        "import structlog, sys; from resultd_server import logs; logs.configure('info');"
        "[structlog.get_logger().info(f'{n}') or structlog.get_logger().error(f'{n}')"
        " for n in range(1000)]; sys.exit(7)"
    )
    ended = subprocess.run([sys.executable, "-c", program], stderr=pipe.write_end, timeout=30)
    assert ended.returncode == 7
