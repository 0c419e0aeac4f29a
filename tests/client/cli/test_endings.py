"""Laws of commands that cannot do their work: a sentence, and an exit code that is no outcome."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from resultd import Client
from resultd.cli import endings
from tests.client.cli.conftest import Cli

if TYPE_CHECKING:
    from resultd.testing import Server

PRINTING = [
    ["get", "TASK"],
    ["get", "TASK", "-o", "json"],
    ["wait", "TASK"],
    ["watch", "TASK"],
    ["watch", "TASK", "-o", "json"],
    ["group", "ls"],
    ["version"],
    ["health"],
    ["token", "new", "worker"],
    ["--help"],
    ["wait", "--help"],
    ["serve", "--help"],
]


@pytest.fixture
def task(client: Client, new_id: Callable[[], str]) -> str:
    """A task that succeeded, so that exit code 1 would be a lie."""
    task_id = new_id()
    client.store_result(task_id, 1)
    return task_id


def run(
    server: Server, arguments: list[str], stdout: int | IO[bytes], stderr: int | IO[bytes]
) -> tuple[int, str]:
    """The exit code of a process of its own, and what it says on stderr."""
    command = [sys.executable, "-c", "from resultd.cli import main; main()", *arguments]
    # With its buffers, as a rule has it: what is left in them must not change the exit code.
    environment = {**os.environ, "RESULTD_URL": server.url, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        command, stdout=stdout, stderr=stderr, env=environment, timeout=30, check=False
    )
    return done.returncode, (done.stderr or b"").decode()


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_output_that_cannot_be_written_is_exit_code_2(
    server: Server, task: str, words: list[str]
) -> None:
    """A full disk under the output: a sentence, and not the exit code of a task that failed."""
    arguments = [word.replace("TASK", task) for word in words]
    with Path("/dev/full").open("wb") as full:
        code, said = run(server, arguments, full, subprocess.PIPE)
    assert (code, said) == (2, "resultd: No space left on device\n")


@pytest.mark.parametrize("words", PRINTING, ids=" ".join)
def test_a_reader_that_has_gone_is_exit_code_141(
    server: Server, task: str, words: list[str]
) -> None:
    """As of a program that SIGPIPE ends, and nothing is said: `resultd get … | head`."""
    reads, writes = os.pipe()
    os.close(reads)
    arguments = [word.replace("TASK", task) for word in words]
    try:
        code, said = run(server, arguments, writes, subprocess.PIPE)
    finally:
        os.close(writes)
    assert code == 141
    assert said == ""


def test_where_nothing_can_be_said_the_exit_code_stays(server: Server, task: str) -> None:
    """stdout and stderr on a full disk: 2 all the same."""
    with Path("/dev/full").open("wb") as full:
        assert run(server, ["wait", task], full, full) == (2, "")


@pytest.mark.parametrize(
    "words",
    [
        ["get"],
        ["forget"],
        ["wait"],
        ["watch"],
        ["watch", "--group"],
        ["group", "show"],
        ["health", "--service"],
    ],
    ids=" ".join,
)
def test_an_id_that_is_not_utf_8_is_said(cli: Cli, words: list[str]) -> None:
    """What a shell hands on as bytes is named in a sentence."""
    ran = cli(*words, "a\udcff" + "b" * 1000)
    assert ran.code == 2
    assert ran.err.startswith("resultd: 'a\\udcffbbb")
    assert ran.err.endswith("b' cannot be written as utf-8\n")
    assert len(ran.err) < 150


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("ca=/", "/: Is a directory"),
        ("ca=/a%00b", "/a\\x00b: Invalid argument"),
        ("token_file=/a%00b", "the token file /a\\x00b cannot be read: Invalid argument"),
        ("cert=/nobody/c.pem&key=/nobody/k.pem", "/nobody/k.pem: No such file or directory"),
    ],
)
@pytest.mark.parametrize("words", [["wait", "x"], ["watch", "x"], ["version"]], ids=" ".join)
def test_a_file_that_cannot_be_read_is_said(
    cli: Cli, words: list[str], query: str, said: str
) -> None:
    """The file's name and why, with exit code 2."""
    ran = cli(*words, url=f"resultds://127.0.0.1?{query}")
    assert (ran.code, ran.err) == (2, f"resultd: {said}\n")


def test_our_own_mistakes_stay_tracebacks() -> None:
    """What nobody foresaw is not made a sentence."""
    with pytest.raises(ValueError, match="ours"), endings.told():
        raise ValueError("ours")
