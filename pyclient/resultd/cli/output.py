"""How answers look: tables for people, JSON for programs, and nothing that steers a terminal."""

from __future__ import annotations

import datetime
import errno
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resultd.errors import RemoteTraceback, TaskError

# Control, format (bidirectional overrides too), surrogate, private, separators of lines.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_STYLES = {
    "SUCCESS": "green",
    "FAILURE": "red",
    "REVOKED": "yellow",
    "RETRY": "yellow",
    "PROGRESS": "cyan",
    "STARTED": "cyan",
}


def escape(text: str, keep: str = "") -> str:
    r"""Write characters that a terminal would obey as \x1b; those in `keep` stay."""
    return "".join(
        _escaped(char) if char not in keep and unicodedata.category(char) in _UNSAFE else char
        for char in text
    )


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Tell the command that its reader has gone; rich would end it with exit code 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def console(**options: Any) -> Console:
    """Return a console that interprets nothing in what it prints."""
    return _Console(markup=False, highlight=False, emoji=False, soft_wrap=False, **options)


def plain(value: object, style: str = "") -> Text:
    """Return a value as text for a cell: safe, and without markup."""
    return Text(escape(str(value)), style=style, overflow="fold")


def state_text(state: str) -> Text:
    """Return a state in its colour."""
    return plain(state, _STYLES.get(state, ""))


def table(columns: Sequence[str], rows: Iterable[Sequence[Text | str]]) -> Table:
    """Return a table; cells are folded, never cut."""
    made = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in made.columns:
        column.overflow = "fold"
    for row in rows:
        made.add_row(*row)
    return made


def json_line(value: Mapping[str, Any]) -> str:
    """Return an object as one line of ASCII; what JSON cannot say is its repr."""
    try:
        line = json.dumps(value, default=_jsonable, allow_nan=False)
    except ValueError:  # there is a NaN or an infinity, which Python writes and nobody else reads
        written = json.dumps(value, default=_jsonable)
        line = json.dumps(json.loads(written, parse_constant=lambda name: repr(float(name))))
    return line.replace("\x7f", "\\u007f")


def _jsonable(value: object) -> object:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return repr(value)


def record(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's meta as an object for programs."""
    result = meta["result"]
    failed = isinstance(result, Exception)
    progress = meta["progress"]
    return {
        "task_id": meta["task_id"],
        "state": meta["status"],
        "existence": meta["existence"],
        "terminal": meta["terminal"],
        "result": None if failed else result,
        "error": _error(result) if failed else None,
        "traceback": meta["traceback"],
        "progress": None if progress is None else progress._asdict(),
        **{key: meta[key] for key in ("name", "worker", "attempt", "version")},
        # Told by workers that have queues, arguments worth keeping, and retries.
        **{key: meta.get(key) for key in ("queue", "args", "kwargs", "retries")},
        **{key: meta[key] for key in ("group_id", "index", "labels", "date_done")},
    }


def _error(error: Exception) -> dict[str, str]:
    if isinstance(error, TaskError):
        return {"type": error.type, "module": error.module, "message": error.message}
    cls = type(error)
    return {"type": cls.__qualname__, "module": cls.__module__, "message": str(error)}


def summary(meta: Mapping[str, Any]) -> str:
    """Return in a few words what a task has come to."""
    result, progress = meta["result"], meta["progress"]
    if isinstance(result, TaskError):
        return str(result)
    if isinstance(result, Exception):
        return f"{type(result).__name__}: {result}"
    if progress is not None and not meta["terminal"]:
        total = f" of {progress.total}" if progress.total else ""
        return f"{progress.current}{total} {progress.message}".rstrip()
    if meta["existence"] != "KNOWN":
        return str(meta["existence"]).lower()
    return "" if result is None and meta["status"] != "SUCCESS" else repr(result)


def remote_traceback(meta: Mapping[str, Any]) -> str:
    """Return a failure's stack for people, its lines kept apart; "" if there is none."""
    text = meta["traceback"] or ""
    cause = getattr(meta["result"], "__cause__", None)
    if not text and isinstance(cause, RemoteTraceback):
        text = cause.text
    return escape(text.rstrip(), keep="\n")


def task_rows(metas: Iterable[Mapping[str, Any]]) -> Table:
    """Return a table of tasks."""
    return table(
        ("task", "state", "result", "worker"),
        (
            (
                plain(meta["task_id"]),
                state_text(meta["status"]),
                plain(summary(meta)),
                plain(meta["worker"] or ""),
            )
            for meta in metas
        ),
    )
