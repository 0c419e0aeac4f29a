"""A real server for the client's tests, and ids that no other test uses."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from resultd.client import Client
    from resultd.testing import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server that all tests share; what stops or breaks one starts its own."""
    from resultd.testing import Server
    from tests.support import workers

    with Server(engine=workers.ENGINE, arguments=workers.FLAGS) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the shared server."""
    from resultd.client import Client
    from tests.support.results import join_timers

    with Client(server.url) as made:
        yield made
        join_timers()


@pytest.fixture
def new_id() -> Callable[[], str]:
    """Give ids that nobody else has."""
    prefix = uuid.uuid4().hex[:12]
    numbers = itertools.count()
    return lambda: f"{prefix}-{next(numbers)}"
