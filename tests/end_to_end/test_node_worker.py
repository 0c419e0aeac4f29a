"""The worker of examples/workers/node, against a real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

import resultd
from resultd.testing import Server
from tests.end_to_end import example_workers
from tests.end_to_end.example_workers import ExampleWorker
from tests.support.access import AuthFile, put
from tests.support.server_process import ServerProcess

COMMAND = ("node", str(example_workers.NODE / "worker.js"))


@pytest.fixture
def client(server: Server) -> Iterator[resultd.Client]:
    """A client of the server."""
    with resultd.Client(server.url) as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that outlives being killed: its data stays."""
    with Server() as running:
        yield running


@pytest.fixture(scope="module")
def modules() -> Path:
    """The worker's packages."""
    return example_workers.node_modules()


def environment(modules: Path, **more: str) -> dict[str, str]:
    """What a worker's process finds."""
    return {**os.environ, "NODE_PATH": str(modules), **more}


@pytest.fixture
def worker(server: Server, modules: Path) -> Iterator[ExampleWorker]:
    """A worker that waits for tasks."""
    address = server.url.removeprefix("resultd://")
    with ExampleWorker([*COMMAND, address], environment(modules)) as running:
        yield running


def test_a_node_worker_reports_what_happens(
    worker: ExampleWorker, client: resultd.Client, tmp_path: Path
) -> None:
    """Values, typed failures with their stacks and group membership arrive as sent."""
    example_workers.reports_what_happens(worker, client, tmp_path)


def test_a_node_worker_shows_progress(
    worker: ExampleWorker, client: resultd.Client, tmp_path: Path
) -> None:
    """How far a task has come is seen while it runs."""
    example_workers.shows_progress(worker, client, tmp_path)


def test_a_node_worker_stops_when_asked(
    worker: ExampleWorker, client: resultd.Client, tmp_path: Path
) -> None:
    """A running task hears of its revocation and ends REVOKED."""
    example_workers.stops_when_asked(worker, client, tmp_path)


def test_a_node_worker_outlives_the_server(
    worker: ExampleWorker, server: Server, tmp_path: Path
) -> None:
    """A report made while the server was dead arrives when it is back."""
    example_workers.outlives_the_server(worker, server, tmp_path)


def test_a_node_worker_repeats_what_may_be_taken_later(modules: Path, tmp_path: Path) -> None:
    """CANCELLED, and RESOURCE_EXHAUSTED with the server's details, are tried again."""
    example_workers.repeats_what_may_be_taken_later(COMMAND, environment(modules), tmp_path)


def test_a_node_worker_ends_over_what_is_never_taken(modules: Path, tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED without details is gRPC's own, and final."""
    example_workers.ends_over_what_is_never_taken(COMMAND, environment(modules), tmp_path)


def test_a_node_worker_is_let_in(modules: Path, tmp_path: Path) -> None:
    """Over TLS, with a token and into a namespace: it reports, and hears what is to stop."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair = put(ca.issue_cert("localhost"), tmp_path)
    auth = AuthFile(tmp_path)
    token = auth.add("node", mine="worker")
    chief = auth.add("chief", mine="admin")
    flags = ("--tls-cert", str(pair.chain), "--tls-key", str(pair.key))
    with ServerProcess(tmp_path, *flags, "--auth-file", str(auth.path)) as server:
        address = server.address.replace("127.0.0.1", "localhost")
        found = environment(
            modules,
            RESULTD_TOKEN=token,
            RESULTD_NAMESPACE="mine",
            RESULTD_CA=str(tmp_path / "ca.pem"),
        )
        url = f"resultds://{address}/mine?ca={tmp_path}/ca.pem&token={chief}"
        with (
            resultd.Client(url) as client,
            ExampleWorker([*COMMAND, address], found) as worker,
        ):
            example_workers.reports_what_happens(worker, client, tmp_path)
            example_workers.stops_when_asked(worker, client, tmp_path)
