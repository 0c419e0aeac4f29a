"""What resultd's own result classes have and Celery's lack, for those who opt in.

resultd.celery.install(app)

for value in group_result.iterate(timeout=60): ...    # as they complete
value = await add.delay(2, 2)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import celery.app.backends
import celery.result
from celery import states
from celery.exceptions import ImproperlyConfigured
from celery.result import EagerResult, assert_will_not_block
from kombu.utils.url import maybe_sanitize_url
from vine import barrier

from resultd import _ids
from resultd._watcher import Callback
from resultd.celery._records import text_id
from resultd.celery.backend import ResultdBackend
from resultd.errors import ResultdError
from resultd.v1 import task_pb2

#: What sets held when somebody began to wait, by their identity.
Taken = dict[int, list[Any]]


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
        self, timeout: float | None = None, propagate: bool = True, interval: float | None = 0.5
    ) -> Iterator[Any]:
        """Iterate over values as tasks complete; a nested set gives the list of its values.

        Raises:
            RuntimeError: called in a task, as `get` there.
            TimeoutError: not all completed within `timeout` seconds.
            Exception: a task's own, with `propagate`; the iteration is over then.
        """
        assert_will_not_block()
        return _iterate(self, timeout, propagate, interval)

    def __await__(self) -> Generator[Any, Any, Any]:
        return _values(self).__await__()


class GroupResult(celery.result.GroupResult, ResultSet):
    """Celery's GroupResult, with `iterate` and `await`."""


def install(app: Any) -> Any:
    """Let the results that an app makes be of the classes above.

    The app's own `AsyncResult`, `ResultSet` and `GroupResult` are extended; other apps keep
    theirs. Two classes that no app makes are given what they lack in the whole process:
    `celery.result.ResultSet` gets `iterate`, and `EagerResult` all that AsyncResult has. The
    app's configuration is not loaded for this, so it may follow.

    Returns the app.

    Raises:
        ImproperlyConfigured: the app's result backend is known already, and is not resultd.
    """
    _refuse_others(app)
    for ours in (AsyncResult, ResultSet, GroupResult):
        theirs = getattr(app, ours.__name__)
        if not issubclass(theirs, ours):  # else installed before
            # What pickles it names `app.AsyncResult`, which this is from now on.
            setattr(app, ours.__name__, type(ours.__name__, (ours, theirs), {}))
    _complete(celery.result.ResultSet, ResultSet, ("iterate",))
    _complete(EagerResult, AsyncResult, ("retry", "return_value", "__await__"))
    return app


def _refuse_others(app: Any) -> None:
    """Refuse an app with another backend, as far as it is known without loading anything.

    Loading the configuration here would be too early for who hears of `on_after_configure`.
    """
    if app.configured:
        fits, shown = isinstance(app.backend, ResultdBackend), app.backend.as_uri()
    else:
        shown = app.backend_cls or app._preconf.get("result_backend")
        if not shown:
            return
        kind, _ = celery.app.backends.by_url(shown, app.loader)
        fits, shown = issubclass(kind, ResultdBackend), maybe_sanitize_url(shown)
    if not fits:
        raise ImproperlyConfigured(
            f"resultd.celery.install(app): the app's result backend is {shown}, not resultd"
        )


def _complete(theirs: type, ours: type, names: Iterable[str]) -> None:
    for name in names:
        if not hasattr(theirs, name):
            setattr(theirs, name, vars(ours)[name])


# iterate()


def _iterate(
    results: Any, timeout: float | None, propagate: bool, interval: float | None
) -> Iterator[Any]:
    taken = _taken(results)
    if any(_is_settled(leaf) for leaf in _leaves(results, taken)):
        yield from _iterate_mixed(results, taken, timeout, propagate, interval)
        return
    if not results.results:
        return
    for _, meta in results.iter_native(timeout=timeout, interval=interval):
        if isinstance(meta, list):  # a nested set, all of it ready
            yield [_got(child, propagate, taken) for child in meta]
        elif propagate and meta["status"] in states.PROPAGATE_STATES:
            raise meta["result"]
        else:
            yield meta["result"]


def _iterate_mixed(
    results: Any, taken: Taken, timeout: float | None, propagate: bool, interval: float | None
) -> Iterator[Any]:
    """Iterate over a set with members that no server will tell of."""
    members = taken[id(results)]
    leaves: dict[str, Any] = {}
    waiting: dict[str, list[int]] = {}
    missing = []
    for place, member in enumerate(members):
        unknown = [leaf for leaf in _leaves(member, taken) if not _is_settled(leaf)]
        missing.append(len(unknown))
        for leaf in unknown:
            leaves.setdefault(leaf.id, leaf)
            waiting.setdefault(leaf.id, []).append(place)
        if not unknown:
            yield _got(member, propagate, taken)
    if not leaves:
        return
    # With a barrier of its own: nobody else is to hear of this set.
    rest = celery.result.ResultSet(list(leaves.values()), app=results.app, ready_barrier=barrier())
    rest.parent = results.parent
    for id_, meta in rest.iter_native(timeout=timeout, interval=interval):
        for place in waiting[id_]:
            if leaves[id_]._cache is None:  # its set's parent failed: it is never run
                if propagate:
                    raise meta["result"]
                if missing[place] > 0:
                    missing[place] = 0
                    yield meta["result"]
                continue
            missing[place] -= 1
            if not missing[place]:
                yield _got(members[place], propagate, taken)


def _got(member: Any, propagate: bool, taken: Taken) -> Any:
    """Give the value of a member, all of which is ready."""
    if isinstance(member, celery.result.ResultSet):  # its own get() waits for ignored ones
        # Other backends' iter_native() gives what a nested set holds in the end.
        held = taken.get(id(member), member.results)
        return [_got(each, propagate, taken) for each in held]
    return member.get(propagate=propagate)


def _is_settled(result: Any) -> bool:
    """Whether nobody will be told what becomes of a result: ignored, or run at once."""
    return isinstance(result, EagerResult) or result.ignored


def _taken(results: Any) -> Taken:
    """Take what a result or set holds now, and each set in it: by the set's identity.

    A set may change while it is waited for, in a callback or in another thread: whoever waits
    goes by what was taken at the beginning.
    """
    taken: Taken = {}
    todo = [results]
    while todo:
        node = todo.pop()
        if isinstance(node, celery.result.ResultSet):
            taken[id(node)] = members = list(node.results or ())
            todo += members
    return taken


def _sets_within(results: Any, taken: Taken) -> Iterator[Any]:
    """Give the sets in a set, as it was taken."""
    for member in taken[id(results)]:
        if isinstance(member, celery.result.ResultSet):
            yield member
            yield from _sets_within(member, taken)


def _leaves(results: Any, taken: Taken) -> Iterator[Any]:
    """Give the single results in a result or set, as it was taken."""
    if isinstance(results, celery.result.ResultSet):
        for member in taken[id(results)]:
            yield from _leaves(member, taken)
    else:
        yield results


# await


async def _value(result: Any) -> Any:
    """Wait for one result without blocking the loop: the stream calls back."""
    if isinstance(result, EagerResult):
        return result.get()
    if result.ignored:
        return None
    assert_will_not_block()
    await _ready([result], _ancestors(result))
    return result.maybe_throw()


async def _values(results: Any) -> list[Any]:
    taken = _taken(results)
    leaves = [leaf for leaf in _leaves(results, taken) if not _is_settled(leaf)]
    assert_will_not_block()
    sets = [results, *_sets_within(results, taken)]
    await _ready(leaves, [each for some in sets for each in _ancestors(some)])
    return [_found(member, taken) for member in taken[id(results)]]


def _found(result: Any, taken: Taken) -> Any:
    if isinstance(result, celery.result.ResultSet):
        return [_found(member, taken) for member in taken[id(result)]]
    return result.get() if _is_settled(result) else result.maybe_throw()


def _ancestors(result: Any) -> list[Any]:
    """Give the single results that this one comes after, the oldest first.

    Those that are stored somewhere, or were: no server is told of an id that it does not take.
    """
    found: list[Any] = []
    node = result.parent
    while node is not None:
        leaves = _leaves(node, _taken(node))
        found[:0] = [
            leaf for leaf in leaves if not _is_settled(leaf) and _ids.fits(text_id(leaf.id))
        ]
        node = node.parent
    return found


async def _ready(results: list[Any], ancestors: list[Any]) -> None:
    """Wait until all results are ready.

    Raises:
        Exception: that of a result that failed, or of an ancestor that did: what comes after
            it may never run.
    """
    _raise_failed(ancestors)
    _raise_failed(results)
    watched: dict[str, list[Any]] = {}
    for result in (*results, *ancestors):
        if result._cache is None:
            watched.setdefault(text_id(result.id), []).append(result)
    missing = {text_id(result.id) for result in results if result._cache is None}
    if not missing:
        return
    news: asyncio.Queue[task_pb2.TaskMeta | ResultdError] = asyncio.Queue()
    with contextlib.closing(_watch(results[0].backend, watched, news)):
        while missing:
            item = await news.get()
            if isinstance(item, ResultdError):
                raise item
            meta = results[0].backend.codec.meta(item)
            if meta["status"] not in states.READY_STATES:
                continue
            missing.discard(item.task_id)
            for result in watched.pop(item.task_id, ()):
                result._maybe_set_cache(meta)
                _raise_failed([result])


def _watch(
    backend: Any, ids: Iterable[str], news: asyncio.Queue[task_pb2.TaskMeta | ResultdError]
) -> Callback:
    """Have records put into the queue of the running loop, until closed."""
    if not isinstance(backend, ResultdBackend):
        raise ImproperlyConfigured(
            f"only results of a resultd backend can be awaited; this one's is {backend.as_uri()}"
        )
    loop = asyncio.get_running_loop()

    def tell(item: task_pb2.TaskMeta | ResultdError) -> None:
        if not isinstance(item, ResultdError):
            backend._ahead.heard([item])
        with contextlib.suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(news.put_nowait, item)

    client = backend.client
    return Callback(client.watcher(), list(ids), tell, tell, client.owner)


def _raise_failed(results: Iterable[Any]) -> None:
    for result in results:
        if result._cache is not None:
            result.maybe_throw()
