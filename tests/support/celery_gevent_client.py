"""A monkey-patched program that calls tasks and waits: `python -m … BROKER RESULTS`.

It does nothing for gRPC. Prints one JSON object.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402 (after the patching, as everywhere)
import sys  # noqa: E402 (the same)
import threading  # noqa: E402 (the same)
import time  # noqa: E402 (the same)
from typing import Any  # noqa: E402 (the same)

import celery  # noqa: E402 (the same)
import gevent  # noqa: E402 (the same)

from tests.support import celery_tasks  # noqa: E402 (the same)

TIMEOUT_S = 20.0
GETS = 100
TICK_S = 0.01


def main() -> None:
    """Does it all while a greenlet shows whether the others are let run."""
    app = celery_tasks.create_app(*sys.argv[1:])
    tasks = celery_tasks.named(app)
    ticks = _Ticks()
    found: dict[str, Any] = {"single": tasks.add.delay(1, 2).get(timeout=TIMEOUT_S)}
    getters = [gevent.spawn(lambda n: tasks.add.delay(n, n).get(TIMEOUT_S), n) for n in range(GETS)]
    gevent.joinall(getters, timeout=2 * TIMEOUT_S)
    found["hundred"] = [getter.value for getter in getters]
    # All of them inside get() at a time: what they wait for is told them all at once.
    key = "test:gevent"
    result = tasks.wait_for.delay(key, "told")
    waiters = [gevent.spawn(result.__copy__().get, timeout=TIMEOUT_S) for _ in range(GETS)]
    celery_tasks.hear(app, f"{key}:begun")
    celery_tasks.say(app, key, "go")
    gevent.joinall(waiters, timeout=2 * TIMEOUT_S)
    found["together"] = [waiter.value for waiter in waiters]
    found["group"] = celery.group(tasks.add.s(n, n) for n in range(10))().get(timeout=TIMEOUT_S)
    chord = celery.chord([tasks.add.s(n, n) for n in range(10)])(tasks.xsum.s())
    found["chord"] = chord.get(timeout=TIMEOUT_S)
    fired = threading.Event()
    tasks.add.delay(1, 1).then(lambda _: fired.set())
    found["then"] = fired.wait(TIMEOUT_S)
    began = time.monotonic()
    try:
        app.AsyncResult("never").get(timeout=0.3)
    except celery.exceptions.TimeoutError:
        found["timed_out_after_s"] = time.monotonic() - began
    found["slept"] = tasks.sleep.delay(0.5).get(timeout=TIMEOUT_S)
    found["longest_pause_s"] = ticks.longest_s
    print(json.dumps(found))


class _Ticks:
    """How long the other greenlets had to wait at worst."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        gevent.spawn(self._tick)

    def _tick(self) -> None:
        while True:
            began = time.monotonic()
            gevent.sleep(TICK_S)
            self.longest_s = max(self.longest_s, time.monotonic() - began - TICK_S)


if __name__ == "__main__":
    main()
