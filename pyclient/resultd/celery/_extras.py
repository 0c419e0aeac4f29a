"""What resultd's own result classes have and Celery's lack, for those who opt in.

resultd.celery.install(app)

for value in group_result.iterate(timeout=60): ...    # as they complete
value = await add.delay(2, 2)
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from typing import Any

import celery.result
from celery import states
from celery.exceptions import ImproperlyConfigured

from resultd._watcher import Callback
from resultd.errors import ResultdError
from resultd.v1 import task_pb2


class AsyncResult(celery.result.AsyncResult):
    """Celery's AsyncResult, with `retry`, `return_value` and `await`."""

    def retry(self) -> bool:
        """Say whether it failed and will be tried again."""
        return bool(self.state == states.RETRY)

    @property
    def return_value(self) -> Any:
        """The value; see `result`."""
        return self.result

    def __await__(self) -> Generator[Any, Any, Any]:
        return _value(self).__await__()


class ResultSet(celery.result.ResultSet):
    """Celery's ResultSet, with `iterate` and `await`."""

    def iterate(
        self, timeout: float | None = None, propagate: bool = True, interval: float = 0.5
    ) -> Iterator[Any]:
        """Iterate over values as tasks complete.

        Raises:
            TimeoutError: not all completed within `timeout` seconds.
            Exception: a task's own, with `propagate`; the iteration is over then.
        """
        return _iterate(self, timeout, propagate, interval)

    def __await__(self) -> Generator[Any, Any, Any]:
        return _values(self).__await__()


class GroupResult(celery.result.GroupResult, ResultSet):
    """Celery's GroupResult, with `iterate` and `await`."""


def install(app: Any) -> Any:
    """Let `app.AsyncResult`, `app.ResultSet` and `app.GroupResult` be the classes above.

    Returns the app.

    Raises:
        ImproperlyConfigured: the app's result backend is not resultd.
    """
    from resultd.celery.backend import ResultdBackend

    if not isinstance(app.backend, ResultdBackend):
        raise ImproperlyConfigured(
            f"resultd.celery.install(app): the app's result backend is {app.backend.as_uri()}, "
            "not resultd"
        )
    for name in ("AsyncResult", "ResultSet", "GroupResult"):
        made = app.subclass_with_self(f"{__name__}:{name}", keep_reduce=False)
        setattr(app, name, made)
    return app


def _iterate(
    results: Any, timeout: float | None, propagate: bool, interval: float
) -> Iterator[Any]:
    for _, meta in results.iter_native(timeout=timeout, interval=interval):
        if isinstance(meta, list):  # a nested set, all of it ready
            yield [child.get(propagate=propagate) for child in meta]
        elif propagate and meta["status"] in states.PROPAGATE_STATES:
            raise meta["result"]
        else:
            yield meta["result"]


async def _value(result: Any) -> Any:
    """Wait for one result without blocking the loop: the stream calls back."""
    await _ready([result])
    return result.maybe_throw()


async def _values(results: Any) -> list[Any]:
    leaves = list(_leaves(results))
    await _ready(leaves)
    return [_found(result) for result in results.results]


def _found(result: Any) -> Any:
    if isinstance(result, celery.result.ResultSet):
        return [_found(child) for child in result.results]
    return result.maybe_throw()


def _leaves(results: Any) -> Iterator[Any]:
    for result in results.results:
        if isinstance(result, celery.result.ResultSet):
            yield from _leaves(result)
        else:
            yield result


async def _ready(results: list[Any]) -> None:
    waiting: dict[str, list[Any]] = {}
    for result in results:
        if result._cache is None and not result.ignored:
            waiting.setdefault(result.id, []).append(result)
    if not waiting:
        return
    backend, loop = results[0].backend, asyncio.get_running_loop()
    done: asyncio.Queue[task_pb2.TaskMeta | ResultdError] = asyncio.Queue()

    def tell(item: task_pb2.TaskMeta | ResultdError) -> None:
        loop.call_soon_threadsafe(done.put_nowait, item)

    # Reaching the hub takes a lock for a moment and may open a channel: not on the loop.
    watch = await loop.run_in_executor(
        None, lambda: Callback(backend.client.watcher(), list(waiting), tell, tell)
    )
    try:
        while waiting:
            item = await done.get()
            if isinstance(item, ResultdError):
                raise item
            meta = backend.codec.meta(item)
            if meta["status"] in states.READY_STATES:
                for result in waiting.pop(item.task_id, ()):
                    result._maybe_set_cache(meta)
    finally:
        watch.close()
