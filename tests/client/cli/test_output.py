"""Laws of what is printed: nothing in it steers a terminal."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resultd import Progress, TaskError
from resultd.cli import output

NASTY = "\x1b]0;owned\x07\x9b31m\u202egnp.exe\x7f\r\n\ud800"


def meta(**changes: Any) -> dict[str, Any]:
    """Return a task's meta."""
    made: dict[str, Any] = {
        "task_id": "t1", "status": "SUCCESS", "result": 1, "existence": "KNOWN",
        "terminal": True, "traceback": None, "progress": None, "name": None, "worker": None,
        "attempt": 0, "version": 1, "group_id": None, "index": None, "labels": {},
        "date_done": None,
    }  # fmt: skip
    return made | changes


def printed(renderable: Any) -> str:
    """Return what a terminal would get, without our own colours."""
    out = io.StringIO()
    output.console(file=out, width=200).print(renderable)
    return out.getvalue()


@given(st.text())
def test_no_control_character_survives_escaping(text: str) -> None:
    """Whatever the text, no C0 or C1 control is left, and the rest can be encoded."""
    escaped = output.escape(text)
    escaped.encode("utf-8")
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in escaped)


def test_escapes_are_readable() -> None:
    r"""ESC becomes \x1b, a bidirectional override \u202e."""
    assert output.escape("\x1b\u202e\x7f") == "\\x1b\\u202e\\x7f"


def test_an_id_and_a_value_cannot_inject() -> None:
    """Terminal codes in an id, a value or a worker's name are shown, not obeyed."""
    shown = printed(output.task_rows([meta(task_id=NASTY, result=NASTY, worker=NASTY)]))
    assert not {"\x1b", "\x07", "\x9b", "\x7f", "\r", "\u202e"} & set(shown)
    assert "\\x1b" in shown


@pytest.mark.parametrize("text", ["[bold red]x[/]", "[/]", "[link=file:///x]y[/link]", ":boom:"])
def test_markup_in_data_is_data(text: str) -> None:
    """Square brackets and emoji codes in values stay what they are."""
    assert text in printed(output.task_rows([meta(result=text)]))


@given(st.text())
def test_json_is_one_line_of_printable_ascii(text: str) -> None:
    """A line of `-o json` is printable ASCII and reads back as what it was."""
    line = output.json_line({"value": text})
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == {"value": text}


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1+1", "x\t=1+1", "a\n=1+1"])
def test_no_value_stands_in_a_cell_of_its_own(value: str) -> None:
    """Nothing printed has columns for a spreadsheet: a value is no cell, so no formula.

    A table's lines begin with a blank and have no tabs; a line of JSON is one object, and quotes.
    """
    nasty = meta(task_id=value, result=value, worker=value, name=value, labels={value: value})
    for line in printed(output.task_rows([nasty])).splitlines():
        assert line.startswith(" ")
        assert "\t" not in line
    line = output.json_line(output.record(nasty))
    assert line.startswith("{")
    assert "\t" not in line
    assert "\n" not in line
    assert json.loads(line)["result"] == value


def test_programs_are_told_where_a_task_ran_and_with_what() -> None:
    """Queue, arguments and retries are in the object, None where its worker did not say."""
    told = output.record(meta(queue="mail", args=[1], kwargs={"to": "x"}, retries=2))
    assert (told["queue"], told["args"], told["kwargs"], told["retries"]) == (
        ("mail", [1], {"to": "x"}, 2)
    )
    assert output.record(meta())["queue"] is None


def test_what_json_cannot_say_is_its_repr() -> None:
    """A value without a JSON form does not break the line."""
    assert json.loads(output.json_line({"v": b"x"})) == {"v": "b'x'"}


def test_numbers_that_json_has_not_are_their_repr() -> None:
    """NaN and the infinities, which workers may send, are strings; all else stays what it is."""
    value = {"v": [math.nan, {"a": math.inf}, -math.inf, 0.1, "NaN", b"x", None], "u": "\x7f"}
    line = output.json_line(value)
    read = json.loads(line, parse_constant=pytest.fail)
    assert read == {"v": ["nan", {"a": "inf"}, "-inf", 0.1, "NaN", "b'x'", None], "u": "\x7f"}
    assert line.isprintable()


def test_a_failure_is_an_error_with_its_remote_type() -> None:
    """`error` names the class as the worker did; `result` is null."""
    found = output.record(meta(status="FAILURE", result=TaskError("HTTPError", "no", module="m")))
    assert found["result"] is None
    assert found["error"] == {"type": "HTTPError", "module": "m", "message": "no"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"result": {"a": 1}}, "{'a': 1}"),
        ({"status": "FAILURE", "result": ValueError("no")}, "ValueError: no"),
        ({"status": "PROGRESS", "terminal": False, "progress": Progress(1, 4, "x")}, "1 of 4 x"),
        ({"status": "PENDING", "existence": "UNKNOWN", "result": None}, "unknown"),
        ({"status": "STARTED", "result": None}, ""),
    ],
)
def test_a_summary_says_what_matters_most(changes: dict[str, Any], words: str) -> None:
    """A value, an error, progress, or whether there is anything at all."""
    assert output.summary(meta(**changes)) == words


def test_a_traceback_keeps_its_lines_and_nothing_else() -> None:
    """Line ends stay, other control characters are escaped."""
    trace = output.remote_traceback(meta(status="FAILURE", traceback="a\n\x1bb\n"))
    assert trace == "a\n\\x1bb"
