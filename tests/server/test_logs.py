"""Logging: one line of JSON a fact where nobody reads it on a terminal."""

from __future__ import annotations

import json
import logging
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


def test_a_terminal_gets_lines_for_people(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal lines are not JSON."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.configure("info")
    structlog.get_logger("a test of terminals").info("seen", count=3)
    said = capsys.readouterr().err
    assert "seen" in said
    assert not said.startswith("{")
