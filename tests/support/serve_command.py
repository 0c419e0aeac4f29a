"""What a command line means to the server: read by the very command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer

from resultd_server import config
from resultd_server.config import Settings
from resultd_server.serve import command


def settings(arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of `resultd serve ARGUMENTS`. Raises what the command would say."""
    single = typer.Typer(add_completion=False)
    single.command("serve")(command)
    context = typer.main.get_command(single).make_context("serve", list(arguments))
    flags = dict(context.params)
    assert flags.pop("config_file") is None
    return config.load(flags, environ=environ or {})
