"""Options that several commands have, and the connection they lead to."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

import typer

import resultd
from resultd.client import Client

DEFAULT_URL = "resultd://127.0.0.1:7758"
# How long to try to reach a server, unless the address says otherwise: a person waits.
REACH_SECONDS = 5


class CommandError(Exception):
    """What a person has to be told; ends the command with exit code 2."""


class Format(str, enum.Enum):
    """How answers are printed."""

    table = "table"
    json = "json"


Url = Annotated[str, typer.Option("--url", envvar="RESULTD_URL", help="The server.", metavar="URL")]
Output = Annotated[
    Format,
    typer.Option("--output", "-o", help="For people, or one JSON object a line for programs."),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", min=0, help="Seconds to wait. Default: as long as it takes."),
]
Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of tasks.")]


@contextlib.contextmanager
def connect(url: str) -> Iterator[Client]:
    """Give a client; without a server there is a sentence after a few seconds.

    Raises:
        CommandError: the address is not one, or nobody answers there.
    """
    try:
        query = parse_qs(urlsplit(url).query, keep_blank_values=True)
        if "timeout" not in query:
            url += f"{'&' if '?' in url else '?'}timeout={REACH_SECONDS}"
        client = Client(url)
    except ValueError as error:
        raise CommandError(str(error)) from None
    with client:
        try:
            yield client
        except resultd.UnavailableError as error:
            where = client.url.shown.partition("?")[0]
            raise CommandError(f"no server answers at {where} ({error})") from None
