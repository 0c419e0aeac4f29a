"""What one namespace may have open at a time, so that it leaves room for the others.

Counted in each process: with `--workers N` a namespace may have N times as much. What it may
have stored is counted in the store: `ledger.usage`.
"""

from __future__ import annotations

from resultd_server.engine.hints import Subscription
from resultd_server.errors import Quota


class Quotas:
    """Counts streams, and the ids and groups they wait for. None: no quota."""

    def __init__(self, streams: int | None = None, waited_ids: int | None = None) -> None:
        self._streams_max = streams
        self._waited_max = waited_ids
        # namespace -> its streams, with the ids each had when it was last looked at
        self._open: dict[str, dict[Subscription, int]] = {}
        self._waited: dict[str, int] = {}

    def enter(self, stream: Subscription) -> None:
        """A stream begins. Raises Quota."""
        if self._streams_max is None and self._waited_max is None:
            return
        namespace = stream.namespace
        there = self._open.setdefault(namespace, {})
        if self._streams_max is not None and len(there) >= self._streams_max:
            raise Quota(
                f"The namespace {namespace!r} has {len(there)} streams open and may have "
                f"{self._streams_max}: wait for many ids on one stream, or try later.",
                namespace=namespace,
                limit=self._streams_max,
            )
        there[stream] = 0
        self.changed(stream)

    def changed(self, stream: Subscription) -> None:
        """A stream waits for other ids than before. Raises Quota."""
        if self._waited_max is None:
            return
        self._look(stream)
        namespace = stream.namespace
        if self._waited[namespace] > self._waited_max:
            # What has come since they were looked at is waited for no longer.
            for each in self._open[namespace]:
                self._look(each)
        if self._waited[namespace] > self._waited_max:
            raise Quota(
                f"The namespace {namespace!r} waits for {self._waited[namespace]} ids and may "
                f"for {self._waited_max}: wait for fewer at a time, or try later.",
                namespace=namespace,
                limit=self._waited_max,
            )

    def _look(self, stream: Subscription) -> None:
        namespace = stream.namespace
        there = self._open[namespace]
        count = sum(map(len, stream.noted.values()))
        self._waited[namespace] = self._waited.get(namespace, 0) + count - there[stream]
        there[stream] = count

    def leave(self, stream: Subscription) -> None:
        """A stream is over, or was not let in."""
        namespace = stream.namespace
        there = self._open.get(namespace, {})
        count = there.pop(stream, 0)
        if there:
            self._waited[namespace] = self._waited.get(namespace, 0) - count
        else:
            self._open.pop(namespace, None)
            self._waited.pop(namespace, None)
