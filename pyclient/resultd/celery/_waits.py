"""Waiting by push: every wait of the process is served by its one `Watch` stream.

A thread that waits gets what it waits for in a mailbox of its own and resolves its own result
objects; nobody polls, and nothing is subscribed when a task is published. `then()` callbacks
run in a thread that exists only while there are some, so they fire without anybody waiting.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from celery import states
from celery.result import AsyncResult
from vine import Thenable, barrier, promise

from resultd import _ids
from resultd._deadline import Deadline
from resultd._pending import INTERVAL, READ_AT_LEAST, read_limit
from resultd._result import UNKNOWN
from resultd._watcher import Callback, Wait
from resultd.celery._errors import TimeoutError as WaitTimeout
from resultd.celery._listeners import Callbacks, Once
from resultd.celery._members import Members, is_known, parents
from resultd.celery._records import is_stored, text_id
from resultd.errors import ResultdError
from resultd.v1 import task_pb2

if TYPE_CHECKING:
    from resultd.celery.backend import ResultdBackend

# A task's id, its meta, and whether that is a record's.
_Told: TypeAlias = tuple[str, dict[str, Any], bool]
# Seconds after which a wait without a timeout makes sure that there is a server at all, if the
# stream has not shown it by then.
DOUBT = 0.25


class Waits:
    """The waits of one backend; methods have the names of the backend's that they serve."""

    def __init__(self, backend: ResultdBackend) -> None:
        self._backend = backend
        self._thens: dict[int, _Then] = {}
        self._callbacks = Callbacks()
        # What the parents of what this thread waits for were last seen as.
        self.known = _Known()

    # AsyncResult.get(), backend.wait_for()

    def wait_for_pending(
        self,
        result: AsyncResult,
        deadline: Deadline,
        interval: float,
        on_interval: Callable[[], object] | None,
        on_message: Callable[[dict[str, Any]], object] | None,
    ) -> None:
        """Wait until a result is ready and has been given what it is.

        `on_interval` is called every `interval` seconds, and as soon as a parent is ready: it
        is what raises a failed parent's exception.

        Raises:
            TimeoutError: it was not ready in time.
        """
        wanted = text_id(result.id)
        family = {wanted: [result]}
        ticks = _Ticks(on_interval, interval, self.known)
        for parent in parents(result) if _looks_at_parents(on_interval) else ():
            task_id = text_id(parent.id)
            if is_known(parent):
                continue
            if task_id != wanted:
                ticks.learn(task_id, dict(UNKNOWN))  # the stream tells of it once it is more
            if _ids.fits(task_id):  # else it never is
                family.setdefault(task_id, []).append(parent)
        for message in self.arrivals(family, deadline, ticks, on_message is not None):
            meta = self._backend.codec.meta(message)
            if on_message is not None and message.task_id == wanted and is_stored(message):
                on_message(meta)
            if meta["status"] not in self._backend.READY_STATES:
                if message.task_id != wanted:
                    ticks.learn(message.task_id, meta)
                continue
            for member in family.pop(message.task_id):
                member._maybe_set_cache(meta)
            if message.task_id != wanted:
                ticks.now()
                continue
            if family and meta["status"] in states.PROPAGATE_STATES:
                self._look_at_parents(family, deadline, ticks)
            return

    def _look_at_parents(
        self, family: dict[str, list[AsyncResult]], deadline: Deadline, ticks: _Ticks
    ) -> None:
        """A result has failed: of a parent, perhaps, which failed first and is to be raised.

        Where no server answers any more, its own failure says why, too.
        """
        for message in self._read(list(family), deadline, goes_on=True):
            task_id, meta = message.task_id, self._backend.codec.meta(message)
            if meta["status"] in self._backend.READY_STATES:
                for parent in family[task_id]:
                    parent._maybe_set_cache(meta)
            else:
                ticks.learn(task_id, meta)
        ticks.now()

    # ResultSet.get(), join_native(), iter_native()

    def iter_native(
        self,
        result: Any,
        timeout: float | None,
        interval: float,
        on_interval: Callable[[], object] | None,
        on_message: Callable[[dict[str, Any]], object] | None,
    ) -> Iterator[tuple[str, Any]]:
        """Yield (id, meta) of a set's results as they become ready; of a nested set (id, children).

        What comes after a task that failed is never run. So when a parent of the set fails,
        those that are not ready are yielded with that parent's meta; when one of a nested set
        does, that set is.

        Raises:
            TimeoutError: not all were ready in time.
        """
        members = Members(result)
        yield from members.ready()
        if not len(members):
            return
        deadline, ticks = Deadline(timeout), _Ticks(on_interval, interval, self.known)
        told = chain(
            self._bereft(members, deadline),
            self._awaited(members, deadline, ticks, on_message is not None),
        )
        for task_id, meta, stored in told:
            if on_message is not None and stored and task_id in members:
                on_message(meta)
            if meta["status"] in self._backend.READY_STATES:
                yield from members.take(task_id, meta)
            if meta["status"] in states.PROPAGATE_STATES:
                yield from members.failed(task_id, meta)
            if not len(members):
                return

    def _bereft(self, members: Members, deadline: Deadline) -> Iterator[_Told]:
        """Give what there is of members whose parent is known to have failed, then that.

        They may have run for all that: a task that failed may have been tried once more. Where
        no server answers any more, the parent's failure says why, too.
        """
        ids = members.bereft
        if ids:
            for message in self._read(ids, deadline, goes_on=True):
                yield message.task_id, self._backend.codec.meta(message), is_stored(message)
            for task_id, meta in members.failures.items():
                yield task_id, meta, False

    def _awaited(
        self, members: Members, deadline: Deadline, ticks: _Ticks, transitions: bool
    ) -> Iterator[_Told]:
        """Give what is told of members that are not ready, and of their parents."""
        for message in self.arrivals(members.ids, deadline, ticks, transitions):
            yield message.task_id, self._backend.codec.meta(message), is_stored(message)

    # backend.get_many()

    def get_many(
        self,
        ids: Iterable[str],
        timeout: float | None,
        interval: float,
        on_interval: Callable[[], object] | None,
        ready_states: frozenset[str],
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (id, meta) as records come, without an end.

        Raises:
            TimeoutError: the time ran out.
        """
        ticks = _Ticks(on_interval, interval, self.known)
        transitions = not ready_states <= self._backend.READY_STATES
        for message in self.arrivals(ids, Deadline(timeout), ticks, transitions):
            yield message.task_id, self._backend.codec.meta(message)

    # What all stand on

    def arrivals(
        self,
        ids: Iterable[str],
        deadline: Deadline,
        ticks: _Ticks,
        transitions: bool,
    ) -> Iterator[task_pb2.TaskMeta]:
        """Yield records as they are read and told of, each ready one once, without an end.

        Raises:
            TimeoutError: the time ran out.
        """
        begun_with = deadline.left()
        versions: dict[str, int] = {}
        waiting = dict.fromkeys(ids)
        client = self._backend.client
        watcher = client.watcher()
        unread = True
        if len(waiting) > 1 or not watcher.streaming or _short(begun_with):
            unread = False
            # Without a server yet the stream tells, as soon as there is one.
            for message in self._read(list(waiting), deadline, goes_on=begun_with is not None):
                if message.version:
                    versions[message.task_id] = message.version
                if message.terminal:
                    del waiting[message.task_id]
                yield message
        doubt = _Doubt(unread and begun_with is None)
        with contextlib.closing(Wait(watcher, waiting, transitions, client.owner)) as wait:
            while True:
                if deadline.left() == 0.0:
                    raise WaitTimeout("The operation timed out.")
                wait.join()
                items = wait.mailbox.receive(doubt.within(ticks.pause(deadline)))  # type: ignore[attr-defined]  # a mailbox for threads
                if doubt.grown(bool(items) or watcher.synced):
                    self._read(list(waiting), deadline, goes_on=False)  # raises if nobody is there
                for item in items:
                    if isinstance(item, ResultdError):
                        raise item
                    self._backend._ahead.heard(item)
                    for message in item:
                        if message.version > versions.get(message.task_id, 0) or message.terminal:
                            versions[message.task_id] = message.version
                            yield message
                ticks.due()

    def _read(
        self, ids: list[str], deadline: Deadline, *, goes_on: bool
    ) -> list[task_pb2.TaskMeta]:
        """Read what there is already, in one call; with `goes_on` nothing if no server answers."""
        try:
            return self._read_now(ids, read_limit(deadline))
        except ResultdError as error:
            if not error.retryable or not goes_on:
                raise
            return []

    def _read_now(self, ids: list[str], limit: float | None) -> list[task_pb2.TaskMeta]:
        client = self._backend.client
        found: list[task_pb2.TaskMeta] = client.run(client.operations.read(ids, limit))
        self._backend._ahead.heard(found)
        return found

    def read_once(
        self, ids: Iterable[str], limit: float | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (id, meta) of all ids, as they are now; tried for `limit` seconds at most."""
        wanted = list(dict.fromkeys(ids))
        if wanted:
            for message in self._read_now(wanted, limit):
                yield message.task_id, self._backend.codec.meta(message)

    # then()

    def expect(self, result: AsyncResult, weak: bool = False) -> None:
        """Have the result's `then()` begin to watch it; nothing is sent before that.

        A `weak` one is watched as long as somebody else has the result.
        """
        on_ready = result.on_ready
        # Weakly: a promise that kept itself would be left to the garbage collector.
        on_ready.then = partial(self._then, weakref.ref(on_ready), weakref.ref(result), weak)

    def _then(
        self,
        its_promise: weakref.ref[promise],
        weakly: weakref.ref[AsyncResult],
        weak: bool,
        callback: Any,
        on_error: Any = None,
    ) -> Any:
        on_ready, result = its_promise() or promise(), weakly()
        listener = callback
        if not isinstance(callback, Thenable):
            listener = promise(callback, on_error=on_error)
        once = Once(listener)
        # Before it is watched: what is told before it has been kept is not heard.
        promise.then(on_ready, once)
        if on_ready.failed:  # or told meanwhile, in another thread
            once.throw(on_ready.reason)
        elif on_ready.ready:
            args, kwargs = on_ready.value
            once(*args, **kwargs)
        # A barrier is a set's, which has one from the moment it is made: frozen, restored,
        # read as somebody's children. Nobody waits for it yet.
        elif result is not None and not isinstance(callback, barrier):
            try:
                self._watch(result, weak)
            except BaseException:
                once.drop()
                raise
        return listener

    def _watch(self, result: AsyncResult, weak: bool) -> None:
        then = self._thens.get(id(result))
        if then is None:
            self._begin(result, weak)
            return
        then.kept = then.kept if weak else result
        if then.watch is not None:
            then.watch.join()  # again in a forked child

    def _begin(self, result: AsyncResult, weak: bool) -> None:
        weakly = weakref.ref(result)

        def resolve(message: task_pb2.TaskMeta) -> None:
            listened = weakly()
            if listened is None:
                return
            self.dismiss(listened)
            try:
                meta = self._backend.codec.meta(message)
            except Exception as error:  # noqa: BLE001 (whatever a value's decoder raises)
                listened.throw(error)
            else:
                listened._maybe_set_cache(meta)

        def give_up(error: ResultdError) -> None:
            listened = weakly()
            if listened is not None:
                self.dismiss(listened)
                listened.throw(error)

        def told(message: task_pb2.TaskMeta) -> None:
            self._backend._ahead.heard([message])
            self._callbacks.add(lambda: resolve(message))

        def refused(error: ResultdError) -> None:
            self._callbacks.add(lambda: give_up(error))

        then = self._thens[id(result)] = _Then(weakly, None if weak else result)
        try:
            client, ids = self._backend.client, [text_id(result.id)]
            watch = Callback(client.watcher(), ids, told, refused, client.owner)
        except BaseException:
            self.dismiss(result)
            raise
        then.watch = watch
        if self._thens.get(id(result)) is not then:  # dismissed meanwhile, in another thread
            watch.close()

    def listened(self, task_id: str) -> list[AsyncResult]:
        """Give the results of a task that somebody listens to."""
        results = [then.result() for then in list(self._thens.values())]
        return [each for each in results if each is not None and text_id(each.id) == task_id]

    def dismiss(self, result: AsyncResult) -> None:
        """Watch a result no longer. Takes no lock: finalisers call this."""
        then = self._thens.pop(id(result), None)
        if then is not None and then.watch is not None:
            then.watch.close()


@dataclass
class _Then:
    """A result that somebody listens to, and the watch on it."""

    result: weakref.ref[AsyncResult]
    #: Kept alive until it is ready, unless all who listen do so weakly.
    kept: AsyncResult | None
    watch: Callback | None = None


class _Doubt:
    """Of a wait without a timeout on a stream that may be on its way to no server at all."""

    def __init__(self, begins: bool) -> None:
        self._deadline = Deadline(DOUBT) if begins else None

    def within(self, pause: float | None) -> float | None:
        """Seconds to wait at most."""
        if self._deadline is None:
            return pause
        return self._deadline.left() if pause is None else self._deadline.within(pause)

    def grown(self, heard: bool) -> bool:
        """Whether it is time to make sure, once; hearing of the server ends the doubt."""
        if self._deadline is None or not (heard or self._deadline.left() == 0.0):
            return False
        self._deadline = None
        return not heard


class _Ticks:
    """When to call `on_interval`, and what it is told without asking the server."""

    def __init__(
        self, on_interval: Callable[[], object] | None, interval: float | None, known: _Known
    ) -> None:
        self._on_interval = on_interval
        self._interval = max(0.001, INTERVAL if interval is None else interval)
        self._next = time.monotonic() + self._interval
        self._known = known
        self._metas: dict[str, dict[str, Any]] = {}

    def learn(self, task_id: str, meta: dict[str, Any]) -> None:
        """Note what a parent, which is watched and not ready, is now."""
        self._metas[task_id] = meta

    def pause(self, deadline: Deadline) -> float | None:
        """Seconds to wait at most."""
        if self._on_interval is None:
            return deadline.left()
        return deadline.within(max(0.0, self._next - time.monotonic()))

    def due(self) -> None:
        """Call it if it is time."""
        if self._on_interval is not None and time.monotonic() >= self._next:
            self.now()

    def now(self) -> None:
        """Call it."""
        self._next = time.monotonic() + self._interval
        if self._on_interval is not None:
            with self._known.holding(self._metas):
                self._on_interval()


class _Known(threading.local):
    """Metas of parents that `on_interval` looks at, and the stream tells of: not asked for."""

    def __init__(self) -> None:
        self._metas: dict[str, dict[str, Any]] = {}

    def get(self, task_id: str) -> dict[str, Any] | None:
        return self._metas.get(task_id)

    @contextlib.contextmanager
    def holding(self, metas: dict[str, dict[str, Any]]) -> Iterator[None]:
        before, self._metas = self._metas, metas
        try:
            yield
        finally:
            self._metas = before


def _looks_at_parents(on_interval: Callable[[], object] | None) -> bool:
    """Whether `on_interval` is what `AsyncResult.get` makes to follow its parents."""
    return on_interval is not None and getattr(on_interval, "fun", on_interval) is not None


def _short(timeout: float | None) -> bool:
    """Whether the read is given longer than there is for a stream to come."""
    return timeout is not None and timeout < READ_AT_LEAST
