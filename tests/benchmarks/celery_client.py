"""The program that is measured: calls Celery's API, knows its result backend only by URL.

One process for each backend takes orders on its standard input, a line of JSON each, and
answers with figures; times are microseconds.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import celery
from celery import states
from celery.exceptions import TimeoutError as CeleryTimeout

import resultd
from resultd.v1 import result_service_pb2 as pb
from tests.benchmarks import bare_chord
from tests.benchmarks.celery_app import NOBODY, create_app
from tests.benchmarks.orders import Partner, partner, take_orders
from tests.benchmarks.processes import rss_mib
from tests.benchmarks.wakes import LIMIT_S as _LIMIT_S
from tests.benchmarks.wakes import wakes

VALUE = "x" * 298
_MODULE = "tests.benchmarks.celery_client"
_BATCH = 500


class Program:
    """What one backend is asked."""

    def __init__(self, broker: str, backend: str) -> None:
        self._urls = broker, backend
        self._stack = contextlib.ExitStack()  # never left: what it holds ends with this process
        self._storer: Partner | None = None
        self._app = create_app(broker, backend)
        self._add = self._app.tasks["add"]
        self._on_redis = "redis://" in backend
        self._on_bare_calls = backend.startswith(bare_chord.__name__)
        self._in_memory = backend.startswith("cache+memory")
        self._fill([str(uuid4())])
        self._result(self._ids(1)[0]).get(timeout=_LIMIT_S)  # connections are no part of it
        self._add.apply_async((0, 0), queue=NOBODY, ignore_result=True)

    # What is measured

    def round_trip(self, samples: int) -> dict[str, float]:
        """`delay().get()`, one after the other, on a real worker; it too is to be warm."""

        def call() -> object:
            return self._add.delay(1, 2).get(timeout=_LIMIT_S)

        _each(call, samples // 10)
        took = _each(call, samples)
        return {"p50": statistics.median(took), "p99": statistics.quantiles(took, n=100)[98]}

    def store(self, samples: int) -> dict[str, float]:
        """`store_result`, one after the other, as a worker's child does it."""
        took = _each(
            lambda: self._app.backend.store_result(str(uuid4()), VALUE, states.SUCCESS), samples
        )
        return {"p50": statistics.median(took)}

    def wake(self, samples: int) -> dict[str, float]:
        """Call of `store_result` in another process → the value that `get()` here waited for."""
        if self._storer is None:
            self._storer = self._stack.enter_context(partner(_MODULE, *self._urls))
        ids = [str(uuid4()) for _ in range(samples + samples // 10)]
        return wakes(ids, self._storer, self._get, self._is_subscribed)

    def store_one(self, task_id: str) -> dict[str, float]:
        """Stores a result; when that was called, by the clock that all processes share."""
        called_s = time.perf_counter()
        self._app.backend.store_result(task_id, VALUE, states.SUCCESS)
        return {"called_s": called_s}

    def get_one(self, samples: int) -> dict[str, float]:
        """`get()` of a ready result nobody here has heard of, other things done in between."""
        took = []
        for task_id in self._ids(samples):
            result = self._result(task_id)
            time.sleep(0.005)
            took.append(_took(functools.partial(result.get, timeout=_LIMIT_S)))
        return {"p50": statistics.median(took)}

    def get_unseen(self, count: int) -> dict[str, float]:
        """So many `get()`s of ready results, ids from elsewhere."""
        ids = self._ids(count)
        return {"took": _took(lambda: [self._result(id_).get(timeout=_LIMIT_S) for id_ in ids])}

    def published(self, count: int) -> dict[str, float]:
        """Tasks published and held: memory, subscriptions; then they are done: `get()` of each."""
        gc.collect()
        before_mib, subscribed = rss_mib(), self._subscriptions()
        results = [self._add.apply_async((1, 2), queue=NOBODY) for _ in range(count)]
        gc.collect()
        found = {"mib": rss_mib() - before_mib, "held": self._subscriptions() - subscribed}
        self._fill([result.id for result in results])
        found["took"] = _took(lambda: [result.get(timeout=_LIMIT_S) for result in results])
        return found

    def waited(self, count: int) -> dict[str, float]:
        """A thread waits for so many pending results: memory and subscriptions meanwhile.

        Before that, how long a wait of 0.2 s takes: the Redis backend's depends on what it
        has done before.
        """
        never = _took(self._wait_in_vain)
        gc.collect()
        ids = [str(uuid4()) for _ in range(count)]
        before_mib, subscribed = rss_mib(), self._subscriptions()
        values: list[Any] = []

        def wait() -> None:
            # All of it in this thread: the Redis backend is another one in each.
            results = self._app.GroupResult(str(uuid4()), [self._result(id_) for id_ in ids])
            values.extend(results.get(timeout=_LIMIT_S))

        waiting = threading.Thread(target=wait)
        waiting.start()
        end = time.monotonic() + _LIMIT_S
        while self._subscriptions() - subscribed < count and time.monotonic() < end:
            time.sleep(0.05)
        gc.collect()
        found = {"mib": rss_mib() - before_mib, "held": self._subscriptions() - subscribed}
        found["never"] = never
        self._fill(ids)
        waiting.join()
        assert values == [VALUE] * count
        return found

    def group_get(self, count: int) -> dict[str, float]:
        """`GroupResult.get()` of ready results, ids from elsewhere."""
        results = [self._result(id_) for id_ in self._ids(count)]
        group = self._app.GroupResult(str(uuid4()), results)
        return {"took": _took(lambda: group.get(timeout=_LIMIT_S))}

    def own_group(self, count: int) -> dict[str, float]:
        """The same of our own client, no Celery: `get()`, and `iterate()` as results come."""
        values: list[object] = []
        with resultd.Client(self._urls[1]) as client:
            group = client.group(str(uuid4()))
            reports = [resultd.Report(str(uuid4()), VALUE, group_id=group.id) for _ in range(count)]
            client.store_results(reports)
            group.seal(count)
            found = {
                "get": _took(lambda: values.extend(group.get(timeout=_LIMIT_S))),
                "iterate": _took(lambda: values.extend(group.iterate(timeout=_LIMIT_S))),
            }
        assert len(values) == 2 * count
        return found

    def group_publish(self, count: int) -> dict[str, float]:
        """A group's `apply_async()`, to no worker."""
        group = celery.group(self._add.s(number, number) for number in range(count))
        return {"took": _took(lambda: group.apply_async(queue=NOBODY))}

    def chord(self, count: int, before: int, chords: int) -> dict[str, float]:
        """A chord on a real worker: the whole, and from its last part to its body.

        Both from the end of that part, and from when its result is stored, as whoever returned
        it is told; and until the body is being published: the rest is Celery's and the broker's.
        The medians of `chords` of them, after `before` of one part: a worker's children are to be
        connected, and to have published a body.
        """
        for _ in range(before):
            self._chord(1)
        seen = [self._chord(count) for _ in range(chords)]
        return {key: statistics.median(each[key] for each in seen) for key in seen[0]}

    def _chord(self, count: int) -> dict[str, float]:
        header = [self._app.tasks["now"].si() for _ in range(count)]
        times: list[float] = []

        def whole() -> None:
            result = celery.chord(header)(self._app.tasks["latest"].s())
            if self._on_bare_calls:  # no part has a result: they are not to be looked for
                result.parent = None
            times.extend(result.get(timeout=_LIMIT_S))

        took = _took(whole)
        last_s, stored_s, handed_s, body_s = times
        return {
            "took": took,
            "body": (body_s - last_s) * 1e6,
            "own": (handed_s - last_s) * 1e6,
            "stored": (body_s - stored_s) * 1e6,
        }

    # How

    def _wait_in_vain(self) -> None:
        with contextlib.suppress(CeleryTimeout):
            self._result(str(uuid4())).get(timeout=0.2)
            raise AssertionError("it came")

    def _result(self, task_id: str) -> Any:
        return self._app.AsyncResult(task_id)

    def _get(self, task_id: str) -> object:
        return self._result(task_id).get(timeout=_LIMIT_S)

    def _ids(self, count: int) -> list[str]:
        """Ids of so many ready results."""
        ids = [str(uuid4()) for _ in range(count)]
        self._fill(ids)
        return ids

    def _fill(self, ids: Sequence[str]) -> None:
        """Stores results in bulk, as they would lie there had workers stored each."""
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            if self._on_redis:
                self._fill_redis(batch)
            elif self._in_memory:
                self._fill_memory(batch)
            else:
                self._fill_resultd(batch)

    def _fill_redis(self, ids: Sequence[str]) -> None:
        backend = self._app.backend
        with backend.client.pipeline(transaction=False) as pipeline:
            for id_ in ids:
                meta = backend._get_result_meta(VALUE, states.SUCCESS, None, None)
                key, data = backend.get_key_for_task(id_), backend.encode({**meta, "task_id": id_})
                pipeline.set(key, data, ex=backend.expires)
                pipeline.publish(key, data)
            pipeline.execute()

    def _fill_memory(self, ids: Sequence[str]) -> None:
        for id_ in ids:
            self._app.backend.store_result(id_, VALUE, states.SUCCESS)

    def _fill_resultd(self, ids: Sequence[str]) -> None:
        backend = self._app.backend
        reports = [backend.codec.report(id_, VALUE, states.SUCCESS, None, None) for id_ in ids]
        request = pb.BatchStoreResultsRequest(reports=reports)
        backend.client.run(backend.client.operations.call("BatchStoreResults", request))

    def _is_subscribed(self, task_id: str) -> bool:
        backend = self._app.backend
        if self._on_redis:
            channel = backend.get_key_for_task(task_id)
            return bool(backend.client.pubsub_numsub(channel)[0][1])
        watcher = backend.client.watcher()
        return watcher.streaming and task_id in watcher._hub._waiters

    def _subscriptions(self) -> int:
        """What the server keeps for this client: channels, or ids on its one stream."""
        backend = self._app.backend
        if self._on_redis:
            return len(backend.client.pubsub_channels())
        watcher = backend.client.watcher()
        return len(watcher._hub._waiters) if watcher.streaming else 0


def _each(work: Callable[[], object], samples: int) -> list[float]:
    return [_took(work) for _ in range(samples)]


def _took(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return (time.perf_counter() - began_s) * 1e6


if __name__ == "__main__":
    take_orders(Program(*sys.argv[1:]))
