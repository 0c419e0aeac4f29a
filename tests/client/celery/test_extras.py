"""What `install` gives results; its own laws and those of `await` have modules of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from celery import states
from celery.result import denied_join_result

from resultd.celery import TimeoutError as CeleryTimeout
from resultd.celery import install
from tests.support.results import later

NewId = Callable[[], str]


@pytest.fixture
def installed(app: Any) -> Any:
    """An app with the extras."""
    return install(app)


class TestResult:
    def test_retry_says_whether_it_is_retried(self, installed: Any, new_id: NewId) -> None:
        """And is no error where it is not."""
        result = installed.AsyncResult(new_id())
        assert result.retry() is False
        installed.backend.mark_as_retry(result.id, ValueError("again"))
        assert result.retry() is True
        installed.backend.mark_as_done(result.id, 1)
        assert result.retry() is False

    def test_return_value_is_the_result(self, installed: Any, new_id: NewId) -> None:
        """The value, the exception, or None."""
        result = installed.AsyncResult(new_id())
        assert result.return_value is None
        installed.backend.mark_as_failure(result.id, KeyError("k"))
        assert isinstance(installed.AsyncResult(result.id).return_value, KeyError)
        installed.backend.mark_as_done(result.id, 1)
        assert installed.AsyncResult(result.id).return_value == 1

    async def test_it_can_be_awaited(self, installed: Any, new_id: NewId) -> None:
        """For its value, or to raise."""
        done, failed = installed.AsyncResult(new_id()), installed.AsyncResult(new_id())
        later(0.1, lambda: installed.backend.mark_as_done(done.id, 5))
        assert await done == 5
        assert await done == 5
        installed.backend.mark_as_failure(failed.id, KeyError("k"))
        with pytest.raises(KeyError):
            await failed


class TestIterate:
    def group(self, app: Any, new_id: NewId, size: int) -> Any:
        """A group without results."""
        return app.GroupResult(new_id(), [app.AsyncResult(new_id()) for _ in range(size)])

    def test_gives_values_as_they_come(self, installed: Any, new_id: NewId) -> None:
        """Of sets and groups."""
        groups = [self.group(installed, new_id, 2) for _ in range(2)]
        for results in (groups[0], installed.ResultSet(groups[1].results)):
            installed.backend.mark_as_done(results[1].id, "first")
            later(0.1, partial(installed.backend.mark_as_done, results[0].id, "2nd"))
            assert list(results.iterate(timeout=5)) == ["first", "2nd"]

    def test_of_nothing_is_over(self, installed: Any) -> None:
        """At once."""
        assert list(installed.ResultSet([]).iterate(timeout=0)) == []

    def test_raises_or_hands_over(self, installed: Any, new_id: NewId) -> None:
        """As it is told."""
        results = self.group(installed, new_id, 1)
        installed.backend.mark_as_failure(results[0].id, KeyError("k"))
        with pytest.raises(KeyError):
            list(results.iterate(timeout=5))
        (error,) = results.iterate(timeout=5, propagate=False)
        assert isinstance(error, KeyError)

    def test_ends_in_time(self, installed: Any, new_id: NewId) -> None:
        """After what there is."""
        results = self.group(installed, new_id, 2)
        installed.backend.mark_as_done(results[1].id, 1)
        found = results.iterate(timeout=0.1)
        assert next(found) == 1
        with pytest.raises(CeleryTimeout):
            next(found)

    def test_within_a_task_is_refused(self, installed: Any, new_id: NewId) -> None:
        """Like `get`."""
        with denied_join_result(), pytest.raises(RuntimeError, match="within a task"):
            self.group(installed, new_id, 1).iterate()

    async def test_all_of_it_can_be_awaited(self, installed: Any, new_id: NewId) -> None:
        """In the order of the group."""
        results = self.group(installed, new_id, 3)
        for number, result in enumerate(results):
            installed.backend.store_result(result.id, number, states.SUCCESS)
        assert await results == [0, 1, 2]
