"""What a person sees: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from resultd.cli.output import console, plain, remote_traceback, summary, table

# Without a terminal: a line each tenth of the way.
STEPS = 10


class Screen:
    """Prints what happens."""

    def __init__(self, total: int, out: Console | None = None) -> None:
        self._out = out if out is not None else console()
        self._total = total
        self._live = self._out.is_terminal
        columns = (
            TextColumn("[progress.description]{task.description}", markup=True),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=self._out, disable=not self._live)
        self._task = self._bar.add_task("results", total=total, numbers="")

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        self._out.print(plain(line), soft_wrap=True)

    def landed(self, done: int, failed: int, words: int) -> None:
        """Show how far it is."""
        numbers = f"{failed} failed, {words:,} words"
        self._bar.update(self._task, completed=done, numbers=numbers)
        step = max(1, self._total // STEPS)
        if not self._live and (done % step == 0 or done == self._total):
            self.say(f"  {done}/{self._total} done, {numbers}")

    def failure(self, path: str, meta: Mapping[str, Any]) -> None:
        """Show a failure with its remote traceback."""
        self.say(f"FAILURE on {meta['worker']}: {path}: {summary(meta)}")
        self._out.print(_indented(remote_traceback(meta)), soft_wrap=True)

    def table(self, rows: list[tuple[str, str]]) -> None:
        """Show the summary."""
        made: Table = table(("summary", ""), [(plain(key), plain(value)) for key, value in rows])
        self._out.print(made)

    def __enter__(self) -> Screen:
        self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


def _indented(text: str) -> Text:
    """Indent a text that is escaped; as `Text`, so that markup in it is not interpreted."""
    return Text("\n".join(f"    {line}" for line in text.splitlines()))
