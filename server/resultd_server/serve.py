"""`resultd serve`: settings, one event loop, signals, exit codes.

SIGTERM or SIGINT drains: new calls are refused, streams end with DRAINING, calls under
way finish within `drain_s`. A second signal stops at once; one of several workers leaves that to
its supervisor, for both may be sent the same signal. A store that fails ends the server with exit
code 3, and one that has no room to be opened with 4: for whoever watches it to start it again,
which is of no use after 2.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, get_args, get_origin

import structlog
import typer

from resultd_server import config, event_loop, heap, logs, standard_streams
from resultd_server.app import App, Place
from resultd_server.config import ConfigError, Settings
from resultd_server.engine.disk import NoRoom
from resultd_server.errors import DomainError
from resultd_server.signals import Signals
from resultd_server.supervisor import NotReady, Supervisor

EXIT_CONFIG = 2
EXIT_STORE_FAILED = 3
EXIT_NO_ROOM = 4

log = structlog.get_logger("resultd.server")


class Running(Protocol):
    """A server, or several under a supervisor."""

    admin: str
    """Where the admin port is once it serves; empty if nowhere."""

    async def start(self) -> str:
        """Begins to serve; the address. Raises ConfigError, DomainError, OSError, NotReady."""

    async def drain(self) -> None:
        """Ends what is under way, in its own time."""

    async def stop(self) -> None:
        """Ends at once."""


async def run(
    settings: Settings, place: Place | None = None, orphaned: asyncio.Event | None = None
) -> int:
    """Serves until a signal comes or the store fails; the exit code.

    `place`: as one of several. `orphaned`: set when whoever started this process is gone.
    """
    app = App(settings, place=place)
    return await _serve(settings, app, app.failed, lambda: EXIT_STORE_FAILED, orphaned=orphaned)


async def run_several(settings: Settings) -> int:
    """The same with `settings.workers` processes."""
    several = Supervisor(settings, (EXIT_STORE_FAILED,), (EXIT_CONFIG, EXIT_NO_ROOM))
    return await _serve(settings, several, several.ended, lambda: several.code, supervises=True)


async def _serve(
    settings: Settings,
    running: Running,
    broken: asyncio.Event,
    code_of_break: Callable[[], int],
    *,
    supervises: bool = False,
    orphaned: asyncio.Event | None = None,
) -> int:
    heap.settle()
    signals = Signals()  # before anybody knows of the server: one that comes early is not lost
    hurry = signals.twice if orphaned is None else orphaned
    alone = asyncio.create_task((orphaned or asyncio.Event()).wait())
    first = asyncio.create_task(signals.once.wait())
    starting = asyncio.create_task(running.start())
    # One of several waits for the others, its supervisor for all, and they may never come.
    may_end = {alone, first} if supervises or orphaned is not None else {alone}
    await asyncio.wait({starting, *may_end}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        if supervises:  # some may serve already
            await asyncio.gather(starting, return_exceptions=True)
            await _drain(running, hurry, broken)
            await running.stop()
            log.info("stopped", code=0)
        return 0
    try:
        address = starting.result()
    except (ConfigError, DomainError, OSError) as error:
        _complain(error)
        return EXIT_NO_ROOM if isinstance(error, NoRoom) else EXIT_CONFIG
    except NotReady as error:
        _complain(error)
        return error.code
    log.info(
        "serving",
        address=address,
        admin=running.admin,
        engine=settings.engine,
        data=str(settings.data or ""),
    )
    if settings.admin_open and running.admin:  # not that of one of several
        log.warning("admin port open: /metrics asks nobody who they are", admin=running.admin)
    logs.flush()  # whoever started the server may look there for what it said, as its admin port
    _tell_ready(address)
    failed = asyncio.create_task(broken.wait())
    await asyncio.wait({failed, first, alone}, return_when=asyncio.FIRST_COMPLETED)
    first.cancel()
    if not broken.is_set() and not alone.done():
        await _drain(running, hurry, broken)
    failed.cancel()
    alone.cancel()
    code = code_of_break() if broken.is_set() else 0
    await running.stop()
    log.info("stopped", code=code)
    return code


def _tell_ready(address: str) -> None:
    """For whoever started the server: the address is known and it answers."""
    # Past Python's buffer, which would be written again at the end, and fail again.
    try:
        os.write(sys.stdout.fileno(), f"resultd ready on {address}\n".encode())
    except OSError as error:  # nobody reads it, or there is no room: callers do not mind
        log.warning("standard output cannot be written to", why=str(error))


def _complain(error: Exception) -> None:
    logs.sentence(f"resultd: {error}")


async def _drain(running: Running, hurry: asyncio.Event, broken: asyncio.Event) -> None:
    log.info("draining")
    draining = asyncio.create_task(running.drain())
    others = [asyncio.create_task(event.wait()) for event in (hurry, broken)]
    await asyncio.wait({draining, *others}, return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, *others):
        task.cancel()
    await asyncio.gather(draining, *others, return_exceptions=True)


def serve(config_file: Path | None = None, **flags: Any) -> None:
    """Runs the server until it is told to stop."""
    standard_streams.fill()
    try:
        settings = config.load(flags, file=config_file)
    except ConfigError as error:
        _complain(error)
        raise typer.Exit(EXIT_CONFIG) from None
    logs.configure(settings.log_level)
    raise typer.Exit(
        event_loop.run(run(settings) if settings.workers == 1 else run_several(settings))
    )


_FLAG_TYPES: dict[str, type] = {
    str(bool): bool,
    str(int): int,
    str(float): float,
    str(int | None): int,
}
"""What a flag takes, by its setting's type; text where the settings parse it.

Paths too: an empty one would be the current directory before they see it.
"""


def _command_signature() -> inspect.Signature:
    """A flag for every setting, so that none can be forgotten."""
    file = Annotated[
        Path | None,
        typer.Option("--config", envvar="RESULTD_CONFIG", help="TOML file with settings."),
    ]
    parameters = [
        inspect.Parameter(
            "config_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=file
        )
    ]
    for name, field in Settings.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        option = typer.Option(
            help=field.description,
            show_default=config.shown_default(name),
            metavar="|".join(choices) or ("PATH" if field.annotation == Path | None else None),
        )
        kind = str if name in config.SIZES else _FLAG_TYPES.get(str(field.annotation), str)
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
    return inspect.Signature(parameters)


def command(**arguments: Any) -> None:
    """Run the server: store results, push them to whoever waits.

    What a flag sets, a variable sets too (RESULTD_DRAIN_S for --drain-s), and a key of the TOML
    file (drain_s). A flag counts before its variable, that before the file.
    """
    serve(**arguments)


command.__signature__ = _command_signature()  # type: ignore[attr-defined]  # read by typer
