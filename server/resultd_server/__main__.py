"""`python -m resultd_server`: the same as `resultd serve`."""

import typer

from resultd_server.serve import command

if __name__ == "__main__":
    typer.run(command)
