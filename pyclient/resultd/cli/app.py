"""The commands put together; further ones come through the entry points `resultd.cli`."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from resultd.cli import about, endings, groups, health, results, waiting
from resultd.cli.demo import command as demo
from resultd.cli.options import CommandError

# Which extra brings a command that cannot be loaded.
_EXTRAS = dict.fromkeys(("serve", "token", "verify", "backup", "restore"), "server")


class Commands(TyperGroup):
    """Our commands, those of entry points (loaded when used), and errors as sentences."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name all commands."""
        return [*super().list_commands(ctx), *_added()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; one that was added is imported only now."""
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in _added():
            return _load(_added()[cmd_name])
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the arguments; `--help` is printed here."""
        with endings.told():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with endings.told():
            return super().invoke(ctx)


def _added() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="resultd.cli")}


def _load(entry: EntryPoint) -> Any:
    try:
        function = entry.load()
    except ModuleNotFoundError as error:
        return _missing(entry.name, error.name or "")
    if isinstance(function, typer.Typer):
        return typer.main.get_command(function)  # several commands under one name
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(entry.name)(function)
    return typer.main.get_command(single)


def _missing(name: str, module: str) -> Any:
    """Stands for a command whose parts are not installed: listed, and says so when run."""
    extra = _EXTRAS.get(name, name)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    accept_all = {"allow_extra_args": True, "ignore_unknown_options": True}

    @single.command(name, context_settings=accept_all, help=f"(needs 'resultd[{extra}]')")
    def say() -> None:
        raise CommandError(f"{name} needs {module}: pip install 'resultd[{extra}]'")

    return typer.main.get_command(single)


app = typer.Typer(
    cls=Commands,
    help="Results of tasks: read them, wait for them, watch them land.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("get")(results.get)
app.command("wait")(waiting.wait)
app.command("watch")(waiting.watch)
app.command("forget")(results.forget)
app.add_typer(groups.app, name="group")
app.command("version")(about.version)
app.command("health")(health.health)
app.command("demo")(demo.demo)
