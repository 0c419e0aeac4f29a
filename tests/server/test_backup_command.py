"""`resultd backup` and `resultd restore`."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from resultd_server.backup_command import EXIT_CANNOT, EXIT_DAMAGED, backup, restore
from resultd_server.engine.lease import NOTE
from tests.support.stores import Clock, Store, make_engine


def run(command: Callable[..., None], *arguments: str) -> Result:
    """What a command does with these."""
    single = typer.Typer()
    single.command()(command)
    return CliRunner().invoke(single, arguments)


def modes(directory: Path) -> dict[str, int]:
    """Who may do what with the files below a directory that hold records."""
    return {
        path.relative_to(directory).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in directory.rglob("*")
        if path.is_file() and path.name != NOTE
    }


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


async def test_strangers_cannot_read_what_is_stored(tmp_path: Path) -> None:
    """Files with records are the owner's and his group's, whatever umask there is."""
    before = os.umask(0)
    try:
        engine = make_engine("journaled", Clock(), tmp_path / "store")
        await engine.start()
        await engine.close()
        run(backup, str(tmp_path / "store"), "--into", str(tmp_path / "b"))
        run(restore, str(tmp_path / "b"), "--into", str(tmp_path / "again"))
    finally:
        os.umask(before)
    with_records = modes(tmp_path)
    assert set(with_records) >= {"b", "store/data.mdb", "store/journal.0", "again/data.mdb"}
    assert {mode & 0o007 for mode in with_records.values()} == {0}


@pytest.mark.parametrize("reader", ["full", "gone"])
async def test_what_was_done_is_done_where_it_cannot_be_said(tmp_path: Path, reader: str) -> None:
    """A disk that is full under stdout, or a reader that has gone: 0, and stderr says it."""
    engine = make_engine("journaled", Clock(), tmp_path / "store")
    await engine.start()
    await engine.close()
    file, again = tmp_path / "b", tmp_path / "again"
    for words, made in (
        (["backup", str(tmp_path / "store"), "--into", str(file)], file),
        (["restore", str(file), "--into", str(again)], again / NOTE),
    ):
        done = _told_nobody(words, reader)
        assert done.returncode == 0, done.stderr
        assert made.exists()
        said, again_said = done.stderr.splitlines()
        assert said.startswith("resultd: this cannot be written to stdout ([Errno")
        assert again_said.startswith(f"{made.parent if made.name == NOTE else made}: ")


async def test_a_name_that_is_not_utf_8_is_told_on_stderr(tmp_path: Path) -> None:
    """A backup there is made, and what a terminal cannot be told is escaped."""
    engine = make_engine("journaled", Clock(), tmp_path / "store")
    await engine.start()
    await engine.close()
    made = tmp_path / "\udcff"
    done = _resultd(["backup", str(tmp_path / "store"), "--into", str(made)], subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert f"\n{tmp_path}/\\udcff: " in done.stderr
    assert made.is_file()


def _told_nobody(words: list[str], reader: str) -> subprocess.CompletedProcess[str]:
    if reader == "full":
        with Path("/dev/full").open("wb") as full:
            return _resultd(words, full.fileno())
    reads, writes = os.pipe()
    os.close(reads)
    try:
        return _resultd(words, writes)
    finally:
        os.close(writes)


def _resultd(words: list[str], stdout: int) -> subprocess.CompletedProcess[str]:
    """The command as a process, which has Python's buffers and its exit."""
    command = [sys.executable, "-c", "from resultd.cli import main; main()", *words]
    # Neither do all locales have Python write what is no UTF-8.
    environment = {**os.environ, "PYTHONUNBUFFERED": "", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        timeout=30,
        check=False,
    )


def test_a_damaged_backup_ends_with_1(tmp_path: Path) -> None:
    """Whatever is no whole backup: another one has to be used."""
    (tmp_path / "b").write_bytes(b"something")
    said = run(restore, str(tmp_path / "b"), "--into", str(tmp_path / "again"))
    assert said.exit_code == EXIT_DAMAGED
    assert "Use another backup" in said.stderr


def test_what_cannot_be_done_ends_with_2(tmp_path: Path) -> None:
    """A sentence on stderr."""
    said = run(backup, str(tmp_path), "--into", str(tmp_path / "b"))
    assert said.exit_code == EXIT_CANNOT
    assert "There is no store" in said.stderr
    (tmp_path / "file").touch()
    for name, why in (
        ("b", f"There is no {tmp_path}/b: name what `resultd backup` made."),
        ("file/b", f"The backup {tmp_path}/file/b cannot be used: Not a directory: name another."),
        ("b" * 300, "cannot be used: File name too long: name another."),
    ):
        said = run(restore, str(tmp_path / name), "--into", str(tmp_path / "again"))
        assert said.exit_code == EXIT_CANNOT
        assert said.stderr.startswith("resultd: T")
        assert said.stderr.endswith(f"{why}\n")


def test_only_a_regular_file_is_restored(tmp_path: Path) -> None:
    """A device, which need have no end, and a pipe, which may never begin: neither is read."""
    os.mkfifo(tmp_path / "pipe")
    for file in ("/dev/null", str(tmp_path), str(tmp_path / "pipe")):
        said = run(restore, file, "--into", str(tmp_path / "again"))
        assert said.exit_code == EXIT_CANNOT
        assert f"{file} is no regular file" in said.stderr
    assert not (tmp_path / "again").exists()
