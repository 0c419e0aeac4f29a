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
import trustme

import resultd
from resultd.testing import Server
from tests.end_to_end import example_workers
from tests.support.access import AuthFile, put
from tests.support.server_process import ServerProcess
from tests.tooling.repository import ROOT

ADDRESS = "127.0.0.1:7758"
SECURED = ("localhost:7758", "ca.pem", "rsd_…")
"""What stands in commands for a server with TLS, who signed its certificate, and a token."""
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of its own."""
    with Server(engine="memory") as running:
        yield running


def blocks(word: str, page: str = "workers.md") -> list[str]:
    """A page's commands that contain a word, in their order."""
    found = [block for block in BLOCK.findall((ROOT / "docs" / page).read_text()) if word in block]
    assert found
    return found


def run(block: str, instead: dict[str, str], **environment: str) -> None:
    """Runs commands that name other things than the page does."""
    for shown, there in instead.items():
        assert shown in block
        block = block.replace(shown, there)
    script = re.sub(r"^pip install .*\n", "", block)
    found = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment}
    subprocess.run(["sh", "-ec", script], cwd=ROOT, env=found, check=True, timeout=30, text=True)


def needs_buf() -> None:
    """Skips the test where there is none."""
    if not (BIN / "buf").exists() and shutil.which("buf") is None:
        pytest.skip("buf is not installed (dev extra: buf-bin)")


def test_the_python_worker_runs_as_the_page_says(server: Server) -> None:
    """The command reports a task that can be read afterwards."""
    for block in blocks("workers/python"):
        run(block, {ADDRESS: server.url.removeprefix("resultd://")})
    with resultd.Client(server.url) as client:
        assert client.AsyncResult("p1").get(timeout=10)["words"] > 0


def test_a_person_can_be_a_worker_with_buf_curl(server: Server) -> None:
    """The three calls of the page store a result and a failure with its trace."""
    needs_buf()
    for block in blocks("buf curl"):
        if SECURED[0] not in block:
            run(block, {ADDRESS: server.url.removeprefix("resultd://")})
    with resultd.Client(server.url) as client:
        assert client.AsyncResult("b1").get(timeout=10) == {"sum": 30}
        failed = client.AsyncResult("b2")
        with pytest.raises(resultd.TaskError, match="OutOfPaper: tray 2"):
            failed.get(timeout=10)
        assert failed.traceback == "at tray 2\nat printer 1"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What to write instead of what the page does, for a server with TLS and tokens."""
    directory = tmp_path_factory.mktemp("secured")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(directory / "ca.pem")
    pair = put(ca.issue_cert("localhost"), directory)
    auth = AuthFile(directory)
    token = auth.add("worker", prod="worker")
    flags = ("--tls-cert", str(pair.chain), "--tls-key", str(pair.key))
    with ServerProcess(directory, *flags, "--auth-file", str(auth.path)) as running:
        address = running.address.replace("127.0.0.1", "localhost")
        yield dict(zip(SECURED, (address, str(directory / "ca.pem"), token), strict=True))


def state_of(task_id: str, secured: dict[str, str]) -> str:
    """What the secured server says of a task."""
    address, ca, token = (secured[shown] for shown in SECURED)
    with resultd.Client(f"resultds://{address}/prod?ca={ca}&token={token}") as client:
        return str(client.AsyncResult(task_id).state)


def test_buf_curl_is_let_in(secured: dict[str, str]) -> None:
    """Over TLS, with a token, into a namespace, as the page says."""
    needs_buf()
    (block,) = (block for block in blocks("buf curl") if SECURED[0] in block)
    run(block, secured)
    assert state_of("b3", secured) == "STARTED"


def test_the_node_worker_is_let_in(secured: dict[str, str]) -> None:
    """By what the page puts into its environment."""
    (block,) = (block for block in blocks("workers/node") if SECURED[0] in block)
    run(block, secured, NODE_PATH=str(example_workers.node_modules()))
    assert state_of("n2", secured) == "SUCCESS"


def test_a_reader_waits_with_buf_curl(server: Server) -> None:
    """The commands of docs/waiting.md end by themselves once there is what they wait for."""
    needs_buf()
    with resultd.Client(server.url) as client:
        for index, task_id in enumerate(("w1", "w2")):
            client.store_result(task_id, index, group_id="wg", index=index)
        client.group("wg").seal(2)
    for block in blocks("buf curl", "waiting.md"):
        run(block, {ADDRESS: server.url.removeprefix("resultd://")})


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
