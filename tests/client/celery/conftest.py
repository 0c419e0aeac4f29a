"""Apps whose results lie in the shared server; there is no worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from resultd.testing import Server

if TYPE_CHECKING:  # where Celery is not installed this file is read all the same
    from tests.support.celery_chord import Chord, NewId

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
def chord(app: Any, new_id: NewId) -> Chord:
    """One that was applied."""
    from tests.support.celery_chord import Chord

    return Chord(app, new_id)


@pytest.fixture
def backend(app: Any) -> Any:
    """The backend of that app."""
    return app.backend
