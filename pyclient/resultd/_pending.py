"""Waiting for results: read what there is, then have the hub tell of the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from resultd._deadline import Deadline
from resultd._effects import Op, Receive, Sleep
from resultd._watcher import Wait
from resultd.errors import ResultdError
from resultd.errors import TimeoutError as WaitTimeout
from resultd.v1 import task_pb2

if TYPE_CHECKING:
    from resultd._core import ClientCore
    from resultd._result import ResultCore

# Seconds that the first read is given even if the wait is shorter, so that `timeout=0` finds
# a result that is there. On an answering server it takes about 1 ms.
READ_AT_LEAST = 0.25
# Seconds between calls of `on_interval` where none are named: Celery's default.
INTERVAL = 0.5


def read_limit(deadline: Deadline) -> float | None:
    """Seconds that a wait gives a read, or another call; None for as long as any call."""
    left = deadline.left()
    return None if left is None else max(left, READ_AT_LEAST)


class Pending:
    """Results of which some are not ready yet.

        pending = Pending(client, results)
        try:
            while pending:
                for result in (yield from pending.next(deadline)): ...
        finally:
            pending.close()

    `on_message` is called with the meta of every state seen, `on_interval` with nothing every
    `interval` seconds, `INTERVAL` for None, as Celery takes it.
    """

    def __init__(
        self,
        client: ClientCore,
        results: Iterable[ResultCore],
        *,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        interval: float | None = INTERVAL,
    ) -> None:
        self._client = client
        #: What is known of each ready result, by identity: it stays known if it is forgotten.
        self.metas: dict[int, dict[str, Any]] = {}
        self._ready: list[ResultCore] = []
        self._waiting: dict[str, list[ResultCore]] = {}
        for result in {id(result): result for result in results}.values():
            if (known := result._cache) is not None:
                self.metas[id(result)] = known
                self._ready.append(result)
            else:
                self._waiting.setdefault(result.id, []).append(result)
        self._on_message = on_message
        self._versions: dict[str, int] = {}
        self._on_interval = on_interval
        self._interval = max(INTERVAL if interval is None else interval, 0.001)
        self._tick = time.monotonic() + self._interval
        self._was_read = False
        self._wait: Wait | None = None

    def __bool__(self) -> bool:
        return bool(self._ready or self._waiting)

    def next(self, deadline: Deadline) -> Op[list[ResultCore]]:
        """Give the results that have become ready, at least one.

        Raises:
            TimeoutError: none became ready in time.
            RuntimeError: none is left. Whoever asks for more waits for what was never given
                here: it is told, where it would ask again and again, past its deadline.
        """
        if not self:
            raise RuntimeError("all results have been given: there is none to wait for")
        if not self._was_read:
            yield from self.read(deadline)
        while not self._ready and self._waiting:
            deadline.check()
            yield from self._receive(deadline)
        ready, self._ready = self._ready, []
        return ready

    def read(self, deadline: Deadline) -> Op[None]:
        """Read what has not been known to be ready, once."""
        self._was_read = True
        if not self._waiting:
            return
        limit = read_limit(deadline)
        try:
            metas = yield from self._client.operations.read(list(self._waiting), limit)
        except ResultdError as error:
            if not error.retryable or limit is None or limit > self._client.url.timeout:
                raise
            yield Sleep(deadline.within(limit))  # the last pause was longer than what is left
            raise WaitTimeout("The operation timed out: no server answered.") from error
        for meta in metas:
            self._take(meta)

    def close(self) -> None:
        """Stop waiting. Never blocks."""
        if self._wait is not None:
            self._wait.close()

    def _receive(self, deadline: Deadline) -> Op[None]:
        if self._wait is None:
            transitions = self._on_message is not None
            watcher, owner = self._client.watcher(), self._client.owner
            self._wait = Wait(watcher, self._waiting, transitions, owner)
        self._wait.join()
        pause = deadline.left()
        if self._on_interval is not None:
            pause = deadline.within(max(0.0, self._tick - time.monotonic()))
        for item in (yield Receive(self._wait.mailbox, pause)):
            if isinstance(item, ResultdError):
                raise item
            for meta in item:
                self._take(meta)
        if self._on_interval is not None and time.monotonic() >= self._tick:
            self._tick = time.monotonic() + self._interval
            self._on_interval()

    def _take(self, meta: task_pb2.TaskMeta) -> None:
        if meta.task_id not in self._waiting:
            return
        if self._on_message is not None and self._is_news(meta):
            self._on_message(self._client.meta_of(meta))
        if meta.terminal:
            for result in self._waiting.pop(meta.task_id):
                self.metas[id(result)] = result._accept(meta)
                self._ready.append(result)

    def _is_news(self, meta: task_pb2.TaskMeta) -> bool:
        """Whether this version was not seen before: the stream begins with what was read."""
        if meta.version <= self._versions.get(meta.task_id, 0):
            return False
        self._versions[meta.task_id] = meta.version
        return True
