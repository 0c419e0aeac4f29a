"""The worker of examples/workers/node, against a real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import resultd
from resultd.testing import Server
from tests.end_to_end import example_workers
from tests.end_to_end.example_workers import ExampleWorker


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


@pytest.fixture
def worker(server: Server, modules: Path) -> Iterator[ExampleWorker]:
    """A worker that waits for tasks."""
    address = server.url.removeprefix("resultd://")
    environment = os.environ | {"NODE_PATH": str(modules)}
    with ExampleWorker(
        ["node", str(example_workers.NODE / "worker.js"), address], environment
    ) as running:
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
