"""The worker of examples/workers/go, against a real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import resultd
from resultd.testing import Server
from tests.end_to_end import example_workers
from tests.end_to_end.example_workers import BUILD_SECONDS_MAX, ExampleWorker

pytestmark = pytest.mark.timeout(BUILD_SECONDS_MAX + 30)  # the first test builds


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
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worker, built as its documentation says."""
    return example_workers.go_worker(tmp_path_factory.mktemp("go"))


@pytest.fixture
def worker(server: Server, binary: Path) -> Iterator[ExampleWorker]:
    """A worker that waits for tasks."""
    address = server.url.removeprefix("resultd://")
    with ExampleWorker([str(binary), address], os.environ) as running:
        yield running


def test_a_go_worker_reports_what_happens(
    worker: ExampleWorker, client: resultd.Client, tmp_path: Path
) -> None:
    """Values, typed failures with their stacks and group membership arrive as sent."""
    example_workers.reports_what_happens(worker, client, tmp_path)


def test_a_go_worker_shows_progress(
    worker: ExampleWorker, client: resultd.Client, tmp_path: Path
) -> None:
    """How far a task has come is seen while it runs."""
    example_workers.shows_progress(worker, client, tmp_path)


def test_a_go_worker_stops_when_asked(
    worker: ExampleWorker, client: resultd.Client, tmp_path: Path
) -> None:
    """A running task hears of its revocation and ends REVOKED."""
    example_workers.stops_when_asked(worker, client, tmp_path)


def test_a_go_worker_outlives_the_server(
    worker: ExampleWorker, server: Server, tmp_path: Path
) -> None:
    """A report made while the server was dead arrives when it is back."""
    example_workers.outlives_the_server(worker, server, tmp_path)


def test_a_go_worker_repeats_what_may_be_taken_later(binary: Path, tmp_path: Path) -> None:
    """CANCELLED, and RESOURCE_EXHAUSTED with the server's details, are tried again."""
    example_workers.repeats_what_may_be_taken_later([str(binary)], os.environ, tmp_path)


def test_a_go_worker_ends_over_what_is_never_taken(binary: Path, tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED without details is gRPC's own, and final."""
    example_workers.ends_over_what_is_never_taken([str(binary)], os.environ, tmp_path)
