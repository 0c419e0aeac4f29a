"""Logging: one line of JSON a fact where nobody reads it on a terminal."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from resultd_server import logs
from resultd_server.log_sink import LINE_BYTES_MAX

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The configuration of logging is put back after each test."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    logs.close()
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("grpc").setLevel(logging.NOTSET)
    structlog.reset_defaults()


def said_on(capfd: Capture) -> str:
    """All that was logged."""
    logs.close()
    return capfd.readouterr().err


def test_a_line_is_json_with_level_and_time(capfd: Capture) -> None:
    """Where stderr is no terminal every line is a JSON object; below the level nothing comes."""
    logs.configure("info")
    log = structlog.get_logger("a test of logs")
    log.info("seen", count=3)
    log.debug("not seen")
    said = json.loads(said_on(capfd))
    assert (said["event"], said["count"], said["level"]) == ("seen", 3, "info")
    assert said["timestamp"].endswith("Z")


def test_a_line_and_its_end_are_one_write() -> None:
    """Workers share the file: with two writes a line, theirs would stand in each other.

    A socket of packets tells one write from two. What waits is written together.
    """
    read, write = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    said = (
        "import logging, structlog; from resultd_server import logs; logs.configure('info');"
        "structlog.get_logger().info('ours'); logging.getLogger('theirs').warning('foreign')"
    )
    with read, write:
        subprocess.run(
            [sys.executable, "-c", said],
            stderr=write.fileno(), env={**os.environ, "PYTHONUNBUFFERED": "1"},
            check=True, timeout=30,
        )  # fmt: skip
        write.close()
        packets = list(iter(lambda: read.recv(4_096), b""))
    said_of_it = [json.loads(line)["event"] for line in b"".join(packets).splitlines()]
    assert said_of_it == ["ours", "foreign"]
    assert all(packet.endswith(b"}\n") for packet in packets)


def test_an_exception_is_one_line(capfd: Capture) -> None:
    """A traceback of ours stays inside its line."""
    logs.configure("info")
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        structlog.get_logger("a test of exceptions").exception("failed")
    [line] = said_on(capfd).splitlines()
    assert "ZeroDivisionError: why" in json.loads(line)["exception"]


def test_what_libraries_log_is_a_line_of_json_too(capfd: Capture) -> None:
    """gRPC's traceback is left out, another library's is inside its line; names are kept."""
    logging.getLogger().handlers.clear()  # pytest's own, too
    logs.configure("info")
    for name in ("grpc._cython.cygrpc", "other"):
        try:
            raise ZeroDivisionError("why")
        except ZeroDivisionError:
            logging.getLogger(name).exception("Unexpected %s", "error")
    first, other = map(json.loads, said_on(capfd).splitlines())
    assert first["event"] == "Unexpected error: why"
    assert (first["logger"], first["level"]) == ("grpc._cython.cygrpc", "error")
    assert "exception" not in first
    assert (other["event"], other["logger"]) == ("Unexpected error", "other")
    assert "ZeroDivisionError: why" in other["exception"]


def test_debug_is_about_calls_and_not_about_grpc(capfd: Capture) -> None:
    """What gRPC has to say of itself would be most of it; its warnings come all the same."""
    logging.getLogger().handlers.clear()  # pytest's own, too
    logs.configure("debug")
    structlog.get_logger("a test of debug").debug("called")
    logging.getLogger("grpc._cython.cygrpc").debug("Loaded running loop")
    logging.getLogger("grpc._cython.cygrpc").warning("no memory")
    said = [json.loads(line)["event"] for line in said_on(capfd).splitlines()]
    assert said == ["called", "no memory"]


def test_a_terminal_gets_lines_for_people(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal lines are not JSON."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.configure("info")
    structlog.get_logger("a test of terminals").info("seen", count=3)
    said = said_on(capfd)
    assert "seen" in said
    assert not said.startswith("{")


HOSTILE = "one\ntwo \x1b[2Jthree\r\x9b31m\u202efour\u2028five\x00"


def test_nobody_writes_lines_of_their_own(capfd: Capture) -> None:
    """Whatever a value holds, JSON keeps it in one line of plain ASCII, and whole."""
    logging.getLogger().handlers.clear()  # pytest's own
    logs.configure("info")
    structlog.get_logger("a test of injection").warning("refused", peer=HOSTILE)
    logging.getLogger("a library").warning("said %s", HOSTILE)
    said = said_on(capfd)
    ours, theirs = said.splitlines()
    assert said.isascii()
    assert json.loads(ours)["peer"] == HOSTILE
    assert json.loads(theirs)["event"] == f"said {HOSTILE}"


def test_nobody_moves_the_cursor_of_a_terminal(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal what would act on it is written out: in values, events and tracebacks."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logging.getLogger().handlers.clear()  # pytest's own
    logs.configure("info")
    log = structlog.get_logger("a test of terminals and injection")
    log.warning(HOSTILE, peer=HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("failed")
    logging.getLogger("a library").warning(HOSTILE)
    said = re.sub(r"\x1b\[\d*m", "", said_on(capfd))  # the renderer's own colours
    assert set("\x1b\r\x9b\u202e\u2028\x00").isdisjoint(said)
    assert len([line for line in said.splitlines() if line.startswith("two")]) == 1  # a traceback's
    assert r"one\ntwo \x1b[2Jthree\r\x9b31m\u202efour\u2028five\x00" in said


@pytest.mark.parametrize("terminal", [False, True])
def test_credentials_are_hidden_wherever_they_stand(
    terminal: bool, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name of a value, in a header, in an address, in a traceback: never the secret."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    logs.configure("info")
    secret = "s3cr3t-w0rd"
    log = structlog.get_logger(f"a test of secrets {terminal}")
    log.info("a", authorization=f"Bearer {secret}", Token=secret, password=secret)
    said_of_it = f"sent Bearer {secret}"
    log.info(said_of_it, url=f"resultds://h/?token={secret}&timeout=5")
    log.info("b", broker=f"amqp://guest:{secret}@host", header=f"authorization: Basic {secret}")
    log.info("c", why=f"nobody knows rsd_{secret}, or not now")
    try:
        local = secret  # noqa: F841  what a traceback with locals would show
        raise ValueError(f"token={secret}")
    except ValueError:
        log.exception("failed")
    said = said_on(capfd)
    assert secret not in said
    assert "timeout=5" in said
    assert "@host" in said


@pytest.mark.parametrize("terminal", [False, True])
def test_a_value_is_cut_where_it_is_too_long(
    terminal: bool, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line does not fill a disk, nor a terminal; of a traceback the end is kept."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    logs.configure("info")
    log = structlog.get_logger("a test of lengths")
    log.info("long", peer="x" * 1_000_000)
    first = said_on(capfd)
    assert len(first) < 2 * logs.VALUE_CHARS_MAX
    logs.configure("info")
    try:
        raise ValueError("x" * 1_000_000 + "the end")
    except ValueError:
        log.exception("failed")
    said = said_on(capfd)
    assert len(said) < 2 * logs.EXCEPTION_CHARS_MAX
    assert "the end" in said


LONG = [
    {"peer": "x" * 10_000, "method": "m"},
    {"peer": "\u2028" * 3_000, "why": "\U0001f600" * 3_000, "method": "m"},
    {"exception": "a frame\n" * 1_000 + "why", "method": "m"},
    {"several": ["x" * 3_000] * 3, "method": "m"},
    {f"value {number}": "x" * 300 for number in range(20)} | {"method": "m"},
]


@pytest.mark.parametrize("facts", LONG, ids=["long", "escaped", "traceback", "list", "many"])
def test_a_line_of_json_is_so_long_that_a_pipe_takes_it_whole(facts: dict[str, Any]) -> None:
    """What is long is cut and says so, a traceback at its beginning; what is short stays."""
    event = {**facts, "event": "failed", "took_ms": 1.5, "known": True, "by": None}
    line = logs.json_line(None, "error", event)
    assert 0.9 * LINE_BYTES_MAX < len(f"{line}\n") <= LINE_BYTES_MAX
    said = json.loads(line)
    assert (said["event"], said["method"]) == ("failed", "m")
    assert (said["took_ms"], said["known"], said["by"]) == (1.5, True, None)
    assert logs.CUT in "".join(str(value) for value in said.values())
    if "exception" in facts:
        assert said["exception"].endswith("a frame\nwhy")


def test_a_line_of_too_many_values_says_what_it_is_about() -> None:
    """Where their names alone are too long for a line."""
    many = {f"value {number}": "" for number in range(1_000)}
    line = logs.json_line(None, "error", {**many, "event": "odd", "level": "error", "timestamp": 1})
    assert json.loads(line) == {"event": "odd", "level": "error", "timestamp": 1}


def test_what_says_the_same_again_and_again_is_counted(capfd: Capture) -> None:
    """So many lines a second of each reason, and how many were left out; debugging wants all."""
    logging.getLogger().handlers.clear()  # pytest's own
    logs.configure("debug")
    log = structlog.get_logger("a test of floods")
    for number in range(1_000):
        log.warning("refused", reason="QUOTA", number=number)
        log.debug("called")
        logging.getLogger("a library").warning("said %d", number)
    log.warning("refused", reason="OVERLOADED")
    lines = [json.loads(line) for line in said_on(capfd).splitlines()]
    told = [line for line in lines if line["event"] == "lines left out"]
    refused = [line for line in lines if line.get("reason") == "QUOTA" and line not in told]
    libraries = [line for line in lines if line.get("logger") == "a library"]
    assert 10 <= len(refused) < 1_000
    assert 10 <= len(libraries) < 1_000
    assert [line["event"] for line in lines].count("called") == 1_000
    assert [line for line in lines if line.get("reason") == "OVERLOADED"] != []
    left_out = {"refused": 0, "a library": 0}
    for line in told:
        assert line.get("reason") == {"refused": "QUOTA"}.get(line["of"])
        left_out[line["of"]] += line["count"]
    assert left_out == {"refused": 1_000 - len(refused), "a library": 1_000 - len(libraries)}


def test_a_library_that_logs_wrongly_harms_nobody(capfd: Capture) -> None:
    """A line that cannot be made is told in another, without the values."""
    logging.getLogger().handlers.clear()  # pytest's own
    logs.configure("info")
    logging.getLogger("a library").warning("%d of %d", "one")
    [line] = map(json.loads, said_on(capfd).splitlines())
    assert (line["event"], line["of"]) == ("a line cannot be made", "a library")


def test_lines_that_cannot_be_written_are_counted_and_told() -> None:
    """The count is a number of the process', and a line of its own once there can be one."""
    read, write = os.pipe()
    os.close(read)
    said = (
        "import structlog; from resultd_server import logs; logs.configure('info');"
        "structlog.get_logger().error('for nobody'); logs.close(); print(logs.lost())"
    )
    done = subprocess.run(
        [sys.executable, "-c", said], stdout=subprocess.PIPE, stderr=write, timeout=30
    )
    os.close(write)
    assert (done.returncode, done.stdout) == (0, b"1\n")


def test_without_stderr_nothing_is_written_in_its_place(tmp_path: Path) -> None:
    """Closed by whoever started the server, its number is the next file's."""
    store = tmp_path / "store"
    said = (
        "import os, structlog; from resultd_server import logs;"
        f"store = os.open({str(store)!r}, os.O_CREAT | os.O_WRONLY); logs.configure('info');"
        "structlog.get_logger().error('seen'); logs.sentence('resultd: said'); print(store)"
    )
    command = [sys.executable, "-c", said]
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    done = subprocess.run(shell, stdout=subprocess.PIPE, check=True, timeout=30)
    assert done.stdout == b"2\n"
    assert store.read_bytes() == b""


@pytest.mark.parametrize("logger", ["structlog.get_logger()", "logging.getLogger('a library')"])
@pytest.mark.parametrize("level", ["error", "critical"])
def test_the_last_word_before_a_crash_is_there(logger: str, level: str) -> None:
    """Whoever says why it ends goes on when that is written."""
    said = (
        "import logging, os, structlog; from resultd_server import log_sink, logs;"
        f"log_sink.FLUSH_S = 20.0; logs.configure('info'); {logger}.{level}('why'); os._exit(1)"
    )
    done = subprocess.run([sys.executable, "-c", said], stderr=subprocess.PIPE, timeout=30)
    assert json.loads(done.stderr)["event"] == "why"


def test_what_is_said_before_the_end_is_written() -> None:
    """However a process ends by itself: its last line is there, and in its place."""
    said = (
        "import structlog; from resultd_server import logs; logs.configure('info');"
        "[structlog.get_logger().info('line', n=n) for n in range(9)];"
        "logs.sentence('resultd: why'); structlog.get_logger().info('last'); raise SystemExit(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", said], stderr=subprocess.PIPE, text=True, timeout=30
    )
    *_, before, sentence, last = done.stderr.splitlines()
    assert (done.returncode, sentence) == (3, "resultd: why")
    assert (json.loads(before)["n"], json.loads(last)["event"]) == (8, "last")
