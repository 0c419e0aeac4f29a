"""A worker's process that reports one result at a time, from many threads or asyncio tasks.

The client puts reports that come together into one call; Celery's Redis backend sends each
by itself. Both keep what they said is stored on the disk.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict

from resultd.testing import Server
from tests.benchmarks.orders import partner
from tests.benchmarks.table import Row, Size, at_least, left_out
from tests.support.redis_server import RedisServer, why_no_redis

THREADS = 32
TASKS = 256
_MODULE = "tests.benchmarks.reporter_client"
_FLOOR = f"{THREADS} threads that hand over nothing and are woken"
_YARDSTICK = f"Celery's Redis backend, {THREADS} threads, appendfsync always"


async def run(size: Size) -> list[Row]:
    """Rounds of both ways, and of Celery's where there is a Redis."""
    count, rounds = size.of(10_000, 64), size.of(3, 1)
    missing = why_no_redis()
    seen: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(partner(_MODULE, stack.enter_context(Server()).url))
        theirs = None
        if missing is None:
            redis = stack.enter_context(RedisServer(appendfsync="always"))
            theirs = stack.enter_context(partner(_MODULE, redis.url))
        for _ in range(rounds):
            seen["threads"].append(ours.ask("threads", count, THREADS)["per_s"])
            seen["nothing"].append(ours.ask("nothing", count, THREADS)["per_s"])
            if theirs is not None:
                seen["celery"].append(theirs.ask("celery", count // 2, THREADS)["per_s"])
            seen["tasks"].append(ours.ask("tasks", count, TASKS)["per_s"])
    rows = [
        Row(f"store_result() one at a time in {many} of a process: results", "1/s", seen[how],
            seen["celery"], _YARDSTICK if seen["celery"] else "",
            at_least(5) if seen["celery"] else None)
        for how, many in (("threads", f"{THREADS} threads"), ("tasks", f"{TASKS} asyncio tasks"))
    ]  # fmt: skip
    rows.append(Row(rows[0].work, "1/s", seen["threads"], seen["nothing"], _FLOOR))
    return rows if missing is None else [*rows, left_out(_YARDSTICK, missing)]
