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

import pytest
import structlog

from resultd_server import logs

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The configuration of logging is put back after each test."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("grpc").setLevel(logging.NOTSET)
    structlog.reset_defaults()


def test_a_line_is_json_with_level_and_time(capsys: Capture) -> None:
    """Where stderr is no terminal every line is a JSON object; below the level nothing comes."""
    logs.configure("info")
    log = structlog.get_logger("a test of logs")
    log.info("seen", count=3)
    log.debug("not seen")
    said = json.loads(capsys.readouterr().err)
    assert (said["event"], said["count"], said["level"]) == ("seen", 3, "info")
    assert said["timestamp"].endswith("Z")


def test_a_line_and_its_end_are_one_write() -> None:
    """Workers share the file: with two writes a line, theirs would stand in each other.

    A socket of packets tells one write from two.
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
        packets = [read.recv(4_096) for _ in range(2)]
    assert [json.loads(packet)["event"] for packet in packets] == ["ours", "foreign"]
    assert all(packet.endswith(b"}\n") for packet in packets)


def test_an_exception_is_one_line(capsys: Capture) -> None:
    """A traceback of ours stays inside its line."""
    logs.configure("info")
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        structlog.get_logger("a test of exceptions").exception("failed")
    [line] = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError: why" in json.loads(line)["exception"]


def test_what_libraries_log_is_a_line_of_json_too(capsys: Capture) -> None:
    """gRPC's traceback is left out, another library's is inside its line; names are kept."""
    logging.getLogger().handlers.clear()  # pytest's own, too
    logs.configure("info")
    for name in ("grpc._cython.cygrpc", "other"):
        try:
            raise ZeroDivisionError("why")
        except ZeroDivisionError:
            logging.getLogger(name).exception("Unexpected %s", "error")
    first, other = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["event"] == "Unexpected error: why"
    assert (first["logger"], first["level"]) == ("grpc._cython.cygrpc", "error")
    assert "exception" not in first
    assert (other["event"], other["logger"]) == ("Unexpected error", "other")
    assert "ZeroDivisionError: why" in other["exception"]


def test_debug_is_about_calls_and_not_about_grpc(capsys: Capture) -> None:
    """What gRPC has to say of itself would be most of it; its warnings come all the same."""
    logging.getLogger().handlers.clear()  # pytest's own, too
    logs.configure("debug")
    structlog.get_logger("a test of debug").debug("called")
    logging.getLogger("grpc._cython.cygrpc").debug("Loaded running loop")
    logging.getLogger("grpc._cython.cygrpc").warning("no memory")
    said = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    assert said == ["called", "no memory"]


def test_a_terminal_gets_lines_for_people(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal lines are not JSON."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.configure("info")
    structlog.get_logger("a test of terminals").info("seen", count=3)
    said = capsys.readouterr().err
    assert "seen" in said
    assert not said.startswith("{")


HOSTILE = "one\ntwo \x1b[2Jthree\r\x9b31m\u202efour\u2028five\x00"


def test_nobody_writes_lines_of_their_own(capsys: Capture) -> None:
    """Whatever a value holds, JSON keeps it in one line of plain ASCII, and whole."""
    logging.getLogger().handlers.clear()  # pytest's own
    logs.configure("info")
    structlog.get_logger("a test of injection").warning("refused", peer=HOSTILE)
    logging.getLogger("a library").warning("said %s", HOSTILE)
    said = capsys.readouterr().err
    ours, theirs = said.splitlines()
    assert said.isascii()
    assert json.loads(ours)["peer"] == HOSTILE
    assert json.loads(theirs)["event"] == f"said {HOSTILE}"


def test_nobody_moves_the_cursor_of_a_terminal(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
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
    said = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().err)  # the renderer's own colours
    assert set("\x1b\r\x9b\u202e\u2028\x00").isdisjoint(said)
    assert len([line for line in said.splitlines() if line.startswith("two")]) == 1  # a traceback's
    assert r"one\ntwo \x1b[2Jthree\r\x9b31m\u202efour\u2028five\x00" in said


@pytest.mark.parametrize("terminal", [False, True])
def test_credentials_are_hidden_wherever_they_stand(
    terminal: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch
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
    said = capsys.readouterr().err
    assert secret not in said
    assert "timeout=5" in said
    assert "@host" in said


def test_a_value_is_cut_where_it_is_too_long(capsys: Capture) -> None:
    """One line does not fill a disk."""
    logs.configure("info")
    structlog.get_logger("a test of lengths").info("long", peer="x" * 1_000_000)
    assert len(capsys.readouterr().err) < 2 * logs.VALUE_CHARS_MAX
