"""The benchmarks: `python -m tests.benchmarks [NAME …] [--size tiny|full]`.

Each runs beside its yardstick, rounds interleaved, so that what the machine does
otherwise falls on both. Ratios count. The full size writes its sections of
`docs/benchmarks.md`; the tiny one only shows that everything still runs, and asserts
nothing about time.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.benchmarks import (
    away,
    celery_backend,
    growth,
    iterate,
    latency,
    reporter,
    start,
    store,
    waiters,
    workers,
)
from tests.benchmarks.table import Row, Size, put, render

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"

BENCHMARKS: dict[str, Callable[[Size], Awaitable[list[Row]]]] = {
    "store": store.run,
    "reporter": reporter.run,
    "latency": latency.run,
    "iterate": iterate.run,
    "waiters": waiters.run,
    "growth": growth.run,
    "start": start.run,
    "workers": workers.run,
    "celery": celery_backend.run,
    "away": away.run,
}


async def main() -> int:
    """Runs what was asked for, all of it unless told; writes the page at full size."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--size", type=Size, choices=list(Size), default=Size.FULL)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}: known are {', '.join(BENCHMARKS)}")
    started_s = time.monotonic()
    for name in arguments.names or BENCHMARKS:
        print(f"# {name}", flush=True)
        began_s = time.monotonic()
        rows = await BENCHMARKS[name](arguments.size)
        for row in rows:
            print(row.line(), flush=True)
        print(f"({time.monotonic() - began_s:.0f} s)", flush=True)
        if arguments.size is Size.FULL:  # at once: the next one may be broken off
            RESULTS.write_text(put(RESULTS.read_text(), {name: render(name, rows)}))
            print(f"written: {RESULTS}")
    print(f"all of it: {(time.monotonic() - started_s) / 60:.1f} min")
    return 0


if __name__ == "__main__":
    # So that servers and workers are ended with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(asyncio.run(main()))
