"""`resultd`, the command: `get`, `wait`, `watch`, `forget`, `group`, `version`, `health`,
`demo`.

Needs `resultd[cli]`; `resultd[server]` adds `serve`.
"""

from __future__ import annotations

import os
import sys

EXIT_USAGE = 2

_BROUGHT_BY_EXTRA = frozenset({"typer", "rich"})


def main() -> None:
    """Run the command; what a bare install lacks is said in a sentence."""
    # Before grpc is imported: its core writes to a terminal what a peer sends, as it is.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
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
