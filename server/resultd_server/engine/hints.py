"""Hints: "this key changed, read it again". They may repeat and are never the data.

    subscription = hub.subscribe("default")
    subscription.add(TASK, ["t1"])
    ...read what there is...
    if await subscription.wait(20.0):
        for kind, id_ in subscription.take(): ...

The one promise: once `add` has returned, any later change of the key is taken, or a
loss that covers it. Everything here runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator

from resultd_server.ledger.unit import Changed

Key = tuple[str, str]
"""(kind, id)."""


class Hub:
    """Who waits for what. One per engine."""

    def __init__(self) -> None:
        # namespace and kind -> id -> who waits: one, as a rule, so no set for it.
        self._waiting: dict[Key, dict[str, Subscription | set[Subscription]]] = {}
        self._subscriptions: set[Subscription] = set()
        #: Where what this process changed is told to others; None if there are none.
        self.outlet: Callable[[Iterable[Changed], float], None] | None = None
        #: How often hints were lost, and everybody had to read everything again.
        self.lost = 0

    def subscribe(self, namespace: str) -> Subscription:
        """Interest in keys of one namespace, none yet. Close it."""
        subscription = Subscription(self, namespace)
        self._subscriptions.add(subscription)
        return subscription

    def announce(self, changed: Collection[Changed], committed_s: float = 0.0) -> None:
        """A commit of this process changed these keys, at `committed_s` of the monotonic clock."""
        self.publish(changed, committed_s)
        if self.outlet is not None and changed:
            self.outlet(changed, committed_s)

    def publish(self, changed: Iterable[Changed], committed_s: float = 0.0) -> None:
        """Wakes whoever waits for these keys; `committed_s` as in `announce`."""
        if not self._waiting:
            return
        for namespace, kind, id_ in changed:
            ids = self._waiting.get((namespace, kind))
            there = ids.get(id_) if ids else None
            if there is None:
                continue
            for subscription in there if isinstance(there, set) else (there,):
                subscription.notice((kind, id_), committed_s)

    def waiting(self, changed: Iterable[Changed]) -> int:
        """How many streams of this process wait for these keys, one for several counted again."""
        count = 0
        for namespace, kind, id_ in changed:
            there = self._waiting.get((namespace, kind), {}).get(id_)
            if there is not None:
                count += len(there) if isinstance(there, set) else 1
        return count

    def lose(self) -> None:
        """Hints may have been lost: everybody reads everything again."""
        self.lost += 1
        for subscription in self._subscriptions:
            subscription.lose()

    def counts(self) -> tuple[int, int]:
        """(subscriptions, keys waited for)."""
        return len(self._subscriptions), sum(len(ids) for ids in self._waiting.values())

    def _add(self, namespace: str, kind: str, id_: str, who: Subscription) -> None:
        ids = self._waiting.setdefault((namespace, kind), {})
        there = ids.get(id_)
        if there is None:
            ids[id_] = who
        elif isinstance(there, set):
            there.add(who)
        elif there is not who:
            ids[id_] = {there, who}

    def _discard(self, namespace: str, kind: str, id_: str, who: Subscription) -> None:
        ids = self._waiting.get((namespace, kind), {})
        there = ids.get(id_)
        if there is who:
            del ids[id_]
        elif isinstance(there, set):
            there.discard(who)
            if len(there) == 1:
                ids[id_] = there.pop()
        if not ids:
            self._waiting.pop((namespace, kind), None)

    def _close(self, who: Subscription) -> None:
        self._subscriptions.discard(who)


class Subscription:
    """One stream's interest. Holds ids and a number for each, never data.

    `noted` keeps a number its owner chooses beside every key: the version last sent.
    What is pending is at most the keys it has, so nothing here needs a bound of its own.
    """

    __slots__ = (
        *("_hub", "_lost", "_noticed", "_wake"),
        *("closed", "committed_s", "namespace", "noted"),
    )

    def __init__(self, hub: Hub, namespace: str) -> None:
        self._hub = hub
        self.namespace = namespace
        self.closed = False
        self.noted: dict[str, dict[str, int]] = {}
        self._noticed: dict[Key, None] = {}
        self._lost = False
        self._wake: asyncio.Future[bool] | None = None
        #: When the first change was committed that was noticed since somebody set this to 0.
        self.committed_s = 0.0

    def add(self, kind: str, ids: Iterable[str]) -> None:
        """Begins to wait for keys; those there already stay as they are.

        Closed, it waits for none: nobody would take them out of the hub again.
        """
        if self.closed:
            return
        noted = self.noted.setdefault(kind, {})
        for id_ in ids:
            if id_ not in noted:
                noted[id_] = 0
                self._hub._add(self.namespace, kind, id_, self)

    def discard(self, kind: str, ids: Iterable[str]) -> None:
        """Waits for these keys no longer."""
        noted = self.noted.get(kind, {})
        for id_ in ids:
            if noted.pop(id_, None) is not None:
                self._hub._discard(self.namespace, kind, id_, self)
                self._noticed.pop((kind, id_), None)

    def notice(self, key: Key, committed_s: float = 0.0) -> None:
        """A hint arrives, of what was committed then, as far as that is known."""
        self._noticed[key] = None
        if not self.committed_s:
            self.committed_s = committed_s
        self.wake()

    def lose(self) -> None:
        """Hints may have been lost."""
        self._lost = True
        self.wake()

    def wake(self) -> None:
        """Ends a wait, hint or not."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(True)

    async def wait(self, timeout_s: float) -> bool:
        """Until there is something to take or somebody wakes; False after `timeout_s`."""
        if self._noticed or self._lost:
            return True
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        timer = loop.call_later(max(timeout_s, 0.0), _time_out, self._wake)
        try:
            return await self._wake
        finally:
            timer.cancel()
            self._wake = None

    def take(self) -> list[Key]:
        """The keys to read again; after a loss all of them."""
        if self._lost:
            self._lost = False
            self._noticed.clear()
            return list(self._keys())
        taken = list(self._noticed)
        self._noticed.clear()
        return taken

    def _keys(self) -> Iterator[Key]:
        for kind, ids in self.noted.items():
            for id_ in ids:
                yield kind, id_

    def close(self) -> None:
        """Waits for nothing any more."""
        self.closed = True
        for kind, ids in self.noted.items():
            for id_ in ids:
                self._hub._discard(self.namespace, kind, id_, self)
        self.noted.clear()
        self._noticed.clear()
        self._hub._close(self)


def _time_out(wake: asyncio.Future[bool]) -> None:
    if not wake.done():
        wake.set_result(False)
