"""A chord whose parts a test returns, as the workers that ran them would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery.exceptions import ChordError

from tests.support.celery_backend import request_of

NewId = Callable[[], str]


class Chord:
    """A chord whose parts the test returns."""

    def __init__(self, app: Any, new_id: NewId, header: Any = ()) -> None:
        self.app = app
        self.id, self.body_id = new_id(), new_id()
        self.body = app.tasks["body"].s().set(task_id=self.body_id)
        self.header = header
        self.apply()

    def apply(self) -> None:
        """Declare it, as `chord.apply_async` does before it publishes the header."""
        self.app.backend.apply_chord((self.id, self.header), self.body)

    def request(self, task_id: str, index: int | None, **more: Any) -> Any:
        """What the worker that runs a part knows."""
        body = dict(self.body)
        return request_of(task_id, group=self.id, group_index=index, chord=body, **more)

    def done(self, task_id: str, value: Any, index: int | None = 0, **more: Any) -> None:
        """A part succeeds; `store_result` False is for tasks that ignore their result."""
        store = more.pop("store_result", True)
        request = self.request(task_id, index, **more)
        self.app.backend.mark_as_done(task_id, value, request=request, store_result=store)

    def failed(self, task_id: str, error: Exception, index: int = 0, **more: Any) -> None:
        """A part fails; `store_result` False is for tasks that ignore their result."""
        store = more.pop("store_result", True)
        request = self.request(task_id, index, **more)
        self.app.backend.mark_as_failure(task_id, error, request=request, store_result=store)

    def size(self, size: int) -> None:
        """Say how many parts there are."""
        self.app.backend.set_chord_size(self.id, size)

    def error(self) -> ChordError:
        """What the body failed of."""
        with pytest.raises(ChordError) as raised:
            self.app.AsyncResult(self.body_id).get(timeout=5)
        found: ChordError = raised.value
        return found
