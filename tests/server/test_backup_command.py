"""`resultd backup` and `resultd restore`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer
from typer.testing import CliRunner, Result

from resultd_server.backup_command import EXIT_CANNOT, backup, restore
from tests.support.stores import Clock, Store, make_engine


def run(command: Callable[..., None], *arguments: str) -> Result:
    """What a command does with these."""
    single = typer.Typer()
    single.command()(command)
    return CliRunner().invoke(single, arguments)


async def test_a_copy_and_a_store_of_it(tmp_path: Path) -> None:
    """Both say what they made, and end with 0."""
    engine = make_engine("journaled", Clock(), tmp_path / "store")
    await engine.start()
    await Store(engine, Clock()).report("t1")
    await engine.close()
    file, again = str(tmp_path / "b"), str(tmp_path / "again")
    said = run(backup, str(tmp_path / "store"), "--into", file)
    assert (said.exit_code, engine.store_id in said.stdout) == (0, True)
    said = run(restore, file, "--into", again)
    assert (said.exit_code, again in said.stdout) == (0, True)


def test_what_cannot_be_done_ends_with_2(tmp_path: Path) -> None:
    """A sentence on stderr."""
    said = run(backup, str(tmp_path), "--into", str(tmp_path / "b"))
    assert said.exit_code == EXIT_CANNOT
    assert "There is no store" in said.stderr
    said = run(restore, str(tmp_path / "b"), "--into", str(tmp_path / "again"))
    assert said.exit_code == EXIT_CANNOT
    assert "No such file" in said.stderr
