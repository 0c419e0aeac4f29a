"""`resultd serve`: settings, one event loop, signals, exit codes.

SIGTERM or SIGINT drains: new calls are refused, streams end with DRAINING, calls under
way finish within `drain_s`. A second signal stops at once. A store that fails ends the
server with exit code 3, for its supervisor to start again.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
import uvloop

from resultd_server import config, logs
from resultd_server.app import App
from resultd_server.config import ConfigError, Settings
from resultd_server.errors import DomainError

EXIT_CONFIG = 2
EXIT_STORE_FAILED = 3

log = structlog.get_logger("resultd.server")


async def run(settings: Settings) -> int:
    """Serves until a signal comes or the store fails; the exit code."""
    app = App(settings)
    # Before anybody knows of the server: a signal that comes early is not lost.
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    try:
        address = await app.start()
    except (DomainError, OSError) as error:
        _complain(error)
        return EXIT_CONFIG
    log.info("serving", address=address, engine=settings.engine, data=str(settings.data or ""))
    # For whoever started the server: the address is known and it answers.
    sys.stdout.write(f"resultd ready on {address}\n")
    sys.stdout.flush()
    failed = asyncio.create_task(app.failed.wait())
    first = asyncio.create_task(signals.get())
    await asyncio.wait({failed, first}, return_when=asyncio.FIRST_COMPLETED)
    first.cancel()
    if not app.failed.is_set():
        await _drain(app, signals)
    failed.cancel()
    code = EXIT_STORE_FAILED if app.failed.is_set() else 0
    await app.stop()
    log.info("stopped", code=code)
    return code


def _complain(error: Exception) -> None:
    sys.stderr.write(f"resultd: {error}\n")


async def _drain(app: App, signals: asyncio.Queue[signal.Signals]) -> None:
    log.info("draining")
    draining = asyncio.create_task(app.drain())
    second = asyncio.create_task(signals.get())
    failed = asyncio.create_task(app.failed.wait())
    await asyncio.wait({draining, second, failed}, return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, second, failed):
        task.cancel()
    await asyncio.gather(draining, second, failed, return_exceptions=True)


def serve(config_file: Path | None = None, **flags: Any) -> None:
    """Runs the server until it is told to stop."""
    try:
        settings = config.load(flags, file=config_file)
    except ConfigError as error:
        _complain(error)
        raise typer.Exit(EXIT_CONFIG) from None
    logs.configure(settings.log_level)
    raise typer.Exit(uvloop.run(run(settings)))


_FLAG_TYPES: dict[str, type] = {
    str(bool): bool,
    str(float): float,
    str(Path | None): Path,
}
"""What a flag takes, by its setting's type; text where the settings parse it."""


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
        option = typer.Option(
            help=f"{field.description} [default: {field.default}]", show_default=False
        )
        kind = _FLAG_TYPES.get(str(field.annotation), str)
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
    """Run the server: store results, push them to whoever waits."""
    serve(**arguments)


command.__signature__ = _command_signature()  # type: ignore[attr-defined]  # read by typer
