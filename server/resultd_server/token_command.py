"""`resultd token`: makes credentials. The server is not asked; its auth file is what counts."""

from __future__ import annotations

import datetime
import json
from typing import Annotated

import typer

from resultd_server.access import tokens
from resultd_server.access.roles import EVERY_NAMESPACE, NAME_CHARS_MAX, NAMESPACE, ROLES

app = typer.Typer(
    help="Tokens for `resultd serve --auth-file`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def token() -> None:
    """Tokens for `resultd serve --auth-file`."""


def _name(said: str) -> str:
    if not said.isprintable() or not said.strip():
        raise typer.BadParameter("is a name people can read")
    if len(said) > NAME_CHARS_MAX:
        raise typer.BadParameter(f"has at most {NAME_CHARS_MAX} characters")
    return said


def _role(said: str) -> str:
    if said not in ROLES:
        raise typer.BadParameter(f"is one of {', '.join(ROLES)}")
    return said


def _namespaces(said: list[str]) -> list[str]:
    for each in said:
        if each != EVERY_NAMESPACE and not NAMESPACE.fullmatch(each):
            raise typer.BadParameter(
                f"{each!r} is not 1 to 64 of a-z 0-9 . _ -, the first a letter or digit; or '*', "
                "for all"
            )
    return list(dict.fromkeys(said))  # TOML takes each key once


@app.command()
def new(
    name: Annotated[str, typer.Argument(callback=_name, help="Who it is for; the log says it.")],
    role: Annotated[str, typer.Option(callback=_role, help=f"{', '.join(ROLES)}.")] = "reader",
    namespace: Annotated[
        list[str], typer.Option(callback=_namespaces, help="Where; may be repeated; '*': all.")
    ] = ["default"],  # noqa: B006  typer copies it
    days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="How long it is good. Default: for ever.")
    ] = None,
) -> None:
    """Make a token: prints it once, on stderr, and on stdout what the auth file needs.

    resultd token new worker-1 --role worker --namespace prod >> auth.toml
    """
    made = tokens.new()
    roles = ", ".join(f"{json.dumps(each)} = {json.dumps(role)}" for each in namespace)
    entry = [
        "",  # it may be added to a file whose last line does not end
        "[[tokens]]",
        f"name = {json.dumps(name, ensure_ascii=False)}",
        f'sha256 = "{tokens.hash_of(made)}"',
        f"roles = {{ {roles} }}",
    ]
    if days is not None:
        ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
        entry.append(f"expires = {ends:%Y-%m-%dT%H:%M:%SZ}")
    typer.echo("\n".join(entry))
    typer.echo(f"The token, shown only now: {made}", err=True)
