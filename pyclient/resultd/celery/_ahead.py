"""Reading ahead: a program that goes through its results one after the other is read for in bulk.

    results = [add.delay(i, i) for i in range(5_000)]
    [result.get() for result in results]          # a handful of calls, not 5,000

`GroupResult.ready()`, `completed_count()` and a chord's look at its header do the same thing.
Celery asks for each result by itself; here the ids that this process published are known in
their order, and whoever asks for one and then for its successor gets the next ones along:
16, then 128, then 1,000. The same thread has to ask for what was read so, within `FRESH` seconds
and before any thread of this process has stored a result, or was told of one that is ready; a
SUCCESS, which nothing but forgetting ends, within `KEPT` and before anything was forgotten here. So
who has stored, forgotten or waited for a result, and tells another thread, has told it the truth;
what other processes do shows as late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from resultd import _ids
from resultd._deadline import Deadline
from resultd._pending import read_limit
from resultd.celery._errors import TimeoutError as WaitTimeout
from resultd.celery._records import text_id
from resultd.errors import ResultdError
from resultd.v1 import result_service_pb2, state_pb2, task_pb2

if TYPE_CHECKING:
    from resultd.celery.backend import ResultdBackend

# Published ids that are remembered: a few hundred bytes each, until their results are deleted.
IDS_MAX = 10_000
# Going over results in their order may skip a few: those that are known to be ready.
STRIDE_MAX = 8
WINDOWS = (1, 16, 128, 1_000)
FRESH = 0.02
KEPT = 1.0


class _Changes:
    """What this process did or heard last: each time another object, compared by `is`.

    stored: a result was stored, or was found to be ready otherwise than by reading ahead.
    """

    stored: object = object()
    forgot: object = object()


_changes = _Changes()


class ReadAhead:
    """What one backend's process published, and what each thread has read of it."""

    def __init__(self, backend: ResultdBackend) -> None:
        self._backend = backend
        # In the order of publishing. Changed without a lock: finalisers do.
        self._ids: dict[str, int] = {}
        self._count = 0
        self._read = _Read()

    def note(self, task_id: Any) -> None:
        """Remember an id that is being published, if a server takes it. Asks nothing."""
        text = text_id(task_id)
        if len(self._ids) < IDS_MAX and _ids.fits(text):
            self._count += 1
            self._ids[text] = self._count

    def drop(self, task_id: Any) -> None:
        """Forget an id whose result object is gone. Takes no lock."""
        self._ids.pop(text_id(task_id), None)

    def stored(self) -> None:
        """Note that a result may have been stored: what was read before may not be so now."""
        _changes.stored = object()
        self._clear()

    def heard(self, messages: Iterable[task_pb2.TaskMeta]) -> None:
        """Note what is about to be shown: of a task that is ready, nothing older is shown then.

        Called from any thread. What this one has read stays, as far as it is SUCCESS.
        """
        if any(message.terminal for message in messages):
            _changes.stored = object()

    def forgot(self) -> None:
        """Note that a result may have been forgotten; as `stored`, and of a SUCCESS too."""
        _changes.stored = _changes.forgot = object()
        self._clear()

    def _clear(self) -> None:
        if self._read.messages:  # this thread does something else now
            self._read.messages.clear()
            self._read.step = 0

    def meta(self, task_id: str, deadline: Deadline | None = None) -> dict[str, Any] | None:
        """Give a result's meta if it was read ahead, or is now; None if it is to be read alone.

        `deadline`: that of a wait, which goes on (None) though no server answers now.

        Raises:
            TimeoutError: there was no answer by then.
        """
        read, now = self._read, time.monotonic()
        message = read.messages.pop(task_id, None)
        if message is not None and read.holds(message, now):
            read.last = self._ids.get(task_id, read.last)
            return self._backend.codec.meta(message)
        window = self._window(task_id)
        return None if window == 1 else self._read_with(task_id, window, deadline or Deadline(None))

    def _window(self, task_id: str) -> int:
        """How many to read along, by how long this thread has gone over ids in their order."""
        read, place = self._read, self._ids.get(task_id)
        if place is None:
            read.last, read.step = -STRIDE_MAX, 0
            return 1
        # Most of what was read along was not asked for: this is no walk, or it waits.
        wasted = len(read.messages) * 2 > read.size
        if 0 < place - read.last <= STRIDE_MAX and not wasted:
            read.step = min(read.step + 1, len(WINDOWS) - 1)
        else:
            read.step = 0
        read.last, read.size = place, 0
        read.messages.clear()
        return WINDOWS[read.step]

    def _read_with(self, task_id: str, window: int, deadline: Deadline) -> dict[str, Any] | None:
        read, client = self._read, self._backend.client
        try:
            ids = list(self._ids)
            at = ids.index(task_id)
        except (RuntimeError, ValueError):  # results were deleted at this very moment
            return None
        request = result_service_pb2.BatchGetResultsRequest(task_ids=ids[at : at + window])
        read.begin()
        # One answer, of at most 3.5 MiB: what does not fit is read when it is asked for.
        limit = read_limit(deadline)
        try:
            response = client.run(client.operations.call("BatchGetResults", request, limit=limit))
        except ResultdError as error:
            if not error.retryable or limit is None:
                raise
            if deadline.left() == 0.0:
                raise WaitTimeout("The operation timed out.") from error
            return None
        read.messages = {message.task_id: message for message in response.metas}
        read.size = len(read.messages)
        message = read.messages.pop(task_id, None)
        return None if message is None else self._backend.codec.meta(message)


class _Read(threading.local):
    """What one thread read ahead, when, and where it is."""

    def __init__(self) -> None:
        self.messages: dict[str, task_pb2.TaskMeta] = {}
        self.size = 0
        self.last = -STRIDE_MAX
        self.step = 0
        self.begin()

    def begin(self) -> None:
        """Note when it is read. Before it is: what is done meanwhile may not be in it."""
        self.at = time.monotonic()
        self.stored, self.forgot = _changes.stored, _changes.forgot

    def holds(self, message: task_pb2.TaskMeta, now: float) -> bool:
        """Whether a record that was read may still be shown."""
        if message.state == state_pb2.STATE_SUCCESS:
            return now < self.at + KEPT and self.forgot is _changes.forgot
        return now < self.at + FRESH and self.stored is _changes.stored
