"""Apps whose results lie in the shared server; there is no worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resultd.testing import Server

MakeApp = Callable[..., Any]


@pytest.fixture
def make_app(server: Server) -> Iterator[MakeApp]:
    """Make apps with settings, on the shared server unless told."""
    from tests.support import celery_backend

    made: list[Any] = []

    def make(url: str | None = None, **settings: Any) -> Any:
        made.append(celery_backend.make_app(server.url if url is None else url, **settings))
        return made[-1]

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(make_app: MakeApp) -> Any:
    """An app with Celery's own settings."""
    return make_app()


@pytest.fixture
def backend(app: Any) -> Any:
    """The backend of that app."""
    return app.backend
