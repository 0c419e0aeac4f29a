"""A client process that lives long: `python -m tests.support.celery_leaker BROKER RESULTS …`.

    … SINGLES GROUPS CHORDS [hoarding]

Calls and waits; a twentieth first, to warm up. Then, and at the end, it prints what it holds
as a line of JSON and goes on when it reads a line.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import celery

from tests.support import celery_tasks
from tests.support.memory import anonymous_bytes

TIMEOUT_S = 60.0
WARM_UP = 20
GROUP = 10
CHORD = 100
#: What may not be left when nobody holds a result any more.
KINDS = ("AsyncResult", "GroupResult", "Wait", "Callback", "ThreadStream", "promise", "barrier")

kept: list[list[Any]] = []


def main() -> None:
    """Warms up, tells, does it all, tells again."""
    broker, results, *sizes = sys.argv[1:]
    app = celery_tasks.create_app(broker, results)
    singles, groups, chords = map(int, sizes[:3])
    if sizes[3:]:
        kept.append([])  # a fault planted: results are not let go
    # Celery and kombu have pools and caches of their own, which the first thousands fill.
    work(app, *(max(1, size // WARM_UP) for size in (singles, groups, chords)))
    tell(app)
    work(app, singles, groups, chords)
    tell(app)


def work(app: Any, singles: int, groups: int, chords: int) -> None:
    """Calls and waits, one after the other."""
    tasks = celery_tasks.named(app)
    for number in range(singles):
        result = tasks.add.delay(number, 1)
        for hoard in kept:
            hoard.append(result)
        assert result.get(timeout=TIMEOUT_S) == number + 1
    for number in range(groups):
        group = celery.group([tasks.add.s(number, n) for n in range(GROUP)], app=app)
        assert group().get(timeout=TIMEOUT_S) == [number + n for n in range(GROUP)]
    for number in range(chords):
        chord = celery.chord([tasks.add.s(number, n) for n in range(CHORD)], app=app)
        expected = number * CHORD + CHORD * (CHORD - 1) // 2
        assert chord(tasks.xsum.s()).get(timeout=TIMEOUT_S) == expected


def tell(app: Any) -> None:
    """Says what the process holds, once it had the time to let go."""
    end = time.monotonic() + 10
    endpoint = app.backend.client._open()
    while (endpoint._streams or threads() > 1) and time.monotonic() < end:
        time.sleep(0.01)  # the stream is kept a moment for the next wait
    gc.collect()
    print(json.dumps(held(app)), flush=True)
    sys.stdin.readline()


def threads() -> int:
    """How many there are, without those that stay to make the main thread's calls."""
    return sum(each.name != "resultd-call" for each in threading.enumerate())


def held(app: Any) -> dict[str, Any]:
    """What the process holds now."""
    backend = app.backend
    endpoint = backend.client._open()
    watcher, hub = endpoint.watcher, endpoint.watcher._hub
    kinds = Counter(type(each).__name__ for each in gc.get_objects())
    return {
        "bytes": anonymous_bytes(os.getpid()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threads(),
        "registries": {
            "then": len(backend._waits._thens),
            "pending": sum(map(len, backend._pending_results)) + len(backend._pending_messages),
            "parts": len(backend._chords._returning.parts),
            "claims": len(backend._chords._returning.claims),
            "noticed": len(backend._chords._noticed),
            "cache": len(backend._cache),
            "ahead": len(backend._ahead._ids),
            "leaving": len(watcher.leaving),
            "waiters": len(hub._ids) + len(hub._waiters),
            "streams": len(endpoint._streams),
            "in flight": len(endpoint._in_flight),
        },
        "objects": {kind: kinds[kind] for kind in KINDS},
    }


if __name__ == "__main__":
    main()
