"""What the README shows runs as it stands there, against a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tooling.repository import ROOT

ADDRESS = "127.0.0.1:7758"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
READY = re.compile(r"ready on (\S+)")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server of its own, on a free port, gone afterwards."""
    command = [sys.executable, "-m", "resultd_server", "--engine=memory", "--listen=127.0.0.1:0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        ready = READY.search(server.stdout.readline())
        assert ready is not None, "the server did not start"
        yield ready[1]
        server.terminate()


def examples(language: str, address: str) -> list[str]:
    """The README's blocks of a language, in their order, talking to `address`."""
    readme = (ROOT / "README.md").read_text()
    found = [code for name, code in BLOCK.findall(readme) if name == language]
    return [code.replace(ADDRESS, address) for code in found]


def run(*command: str | Path) -> str:
    """What a command prints; it must succeed within 30 s."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        command, env=environment, check=True, timeout=30, text=True, stdout=subprocess.PIPE
    ).stdout


def test_the_python_examples_run_in_their_order(address: str) -> None:
    """A worker reports, an app waits, in sync and asyncio: each block is a whole program."""
    worker, app, asynchronous, _ = examples("python", address)
    run(sys.executable, "-c", worker)
    assert run(sys.executable, "-c", app).splitlines()[:2] == ["{'sum': 30}"] * 2
    assert run(sys.executable, "-c", asynchronous) == "{'sum': 30}\n"


def test_the_celery_example_reads_what_a_worker_reported(address: str) -> None:
    """An app with the server as its result backend reads a record, no broker asked."""
    pytest.importorskip("celery")
    worker, *_, celery = examples("python", address)
    run(sys.executable, "-c", worker)
    assert run(sys.executable, "-c", celery) == "{'sum': 30}\n"


def test_the_server_answers_the_curl_of_the_readme(address: str) -> None:
    """By reflection, without our protos at hand, a gRPC tool reads a record."""
    if not (BIN / "buf").exists():
        pytest.skip("buf is in the [dev] extra")
    (command,) = (code for code in examples("sh", address) if code.startswith("buf curl"))
    answer = json.loads(run("bash", "-c", command))
    assert answer["meta"]["taskId"] == "t1"
