"""The command, run in this process against the shared server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from typer.testing import CliRunner

from resultd.cli.app import app

if TYPE_CHECKING:
    from resultd.testing import Server


class Ran(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """What `-o json` printed."""
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Ran]


@pytest.fixture
def cli(server: Server) -> Cli:
    """Run `resultd ARGUMENTS` as a person would, but for the process."""

    def run(*arguments: str, url: str = server.url) -> Ran:
        done = CliRunner().invoke(app, list(arguments), env={"RESULTD_URL": url, "COLUMNS": "200"})
        return Ran(done.exit_code, done.stdout, done.stderr)

    return run
