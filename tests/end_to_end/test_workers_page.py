"""docs/workers.md does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import resultd
from resultd.testing import Server
from tests.tooling.repository import ROOT

ADDRESS = "127.0.0.1:7758"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of its own."""
    with Server(engine="memory") as running:
        yield running


def run(word: str, server: Server) -> None:
    """Run the page's commands that contain a word, in their order, against `server`."""
    page = (ROOT / "docs" / "workers.md").read_text()
    wanted = [block for block in BLOCK.findall(page) if word in block]
    assert wanted
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    for block in wanted:
        lines = block.replace(ADDRESS, server.url.removeprefix("resultd://"))
        script = re.sub(r"^pip install .*\n", "", lines)
        subprocess.run(
            ["sh", "-ec", script], cwd=ROOT, env=environment, check=True, timeout=30, text=True
        )


def test_the_python_worker_runs_as_the_page_says(server: Server) -> None:
    """The command reports a task that can be read afterwards."""
    run("workers/python", server)
    with resultd.Client(server.url) as client:
        assert client.AsyncResult("p1").get(timeout=10)["words"] > 0


def test_a_person_can_be_a_worker_with_buf_curl(server: Server) -> None:
    """The three calls of the page store a result and a failure with its trace."""
    if not (BIN / "buf").exists() and shutil.which("buf") is None:
        pytest.skip("buf is not installed (dev extra: buf-bin)")
    run("buf curl", server)
    with resultd.Client(server.url) as client:
        assert client.AsyncResult("b1").get(timeout=10) == {"sum": 30}
        failed = client.AsyncResult("b2")
        with pytest.raises(resultd.TaskError, match="OutOfPaper: tray 2"):
            failed.get(timeout=10)
        assert failed.traceback == "at tray 2\nat printer 1"


def test_every_file_of_the_examples_is_named_by_the_page() -> None:
    """A program of `examples/workers` that nobody is led to is not an example."""
    page = (ROOT / "docs/workers.md").read_text()
    programs = [
        path.name
        for path in (ROOT / "examples" / "workers").glob("*/*")
        if path.suffix in {".py", ".js", ".go", ".sh"}
    ]
    assert programs
    assert [name for name in programs if name not in page] == []
