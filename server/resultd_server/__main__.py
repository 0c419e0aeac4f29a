"""`python -m resultd_server`: the same as `resultd serve`."""

import typer

from resultd_server.serve import command

if __name__ == "__main__":
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command()(command)
    alone()
