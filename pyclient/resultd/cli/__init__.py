"""`resultd`, the command: `get`, `wait`, `watch`, `forget`, `group`, `version`, `health`,
`demo`.

Needs `resultd[cli]`; `resultd[server]` adds `serve`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typer import Typer

EXIT_USAGE = 2

_BROUGHT_BY_EXTRA = frozenset({"typer", "rich"})


def main() -> None:
    """Run the command; what a bare install lacks is said in a sentence."""
    # Before grpc is imported: its core writes to a terminal what a peer sends, as it is.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        if sys.argv[1:2] == ["serve"] and (serve := _added("serve")) is not None:
            serve(args=sys.argv[2:], prog_name="resultd serve")
        from resultd.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _BROUGHT_BY_EXTRA:
            raise
        print(
            "resultd: the command line is not installed: pip install 'resultd[cli]'",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_USAGE) from None
    app()


def _added(name: str) -> Typer | None:
    """A command of the entry points by itself: it starts sooner without all the others.

    None where it is not installed, or something it needs.
    """
    from importlib.metadata import entry_points

    from typer import Typer
    from typer.core import TyperCommand

    class Alone(TyperCommand):
        def make_context(self, *args: Any, **kwargs: Any) -> Any:
            """Read the arguments; what goes wrong is told as of the others, but for the server."""
            try:
                return super().make_context(*args, **kwargs)
            except (OSError, UnicodeError):
                from resultd.cli import endings  # late: it takes longer than the rest

                with endings.told():
                    raise

    for entry in entry_points(group="resultd.cli", name=name):
        try:
            command = entry.load()
        except ModuleNotFoundError:
            return None
        # A traceback is for a log: plain, and without the values of variables.
        alone = Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        alone.command(cls=Alone)(command)
        return alone
    return None
