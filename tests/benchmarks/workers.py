"""`--workers 1` and 2: results a second, and CPU a result of both sides.

Two generators in processes of their own make the load; on few cores they and the workers
share them, so what counts for more cores is the CPU a result of each side.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.benchmarks.orders import Partner, partner
from tests.benchmarks.processes import Running, resultd
from tests.benchmarks.reports import BATCH
from tests.benchmarks.table import Row, Size

_GENERATORS = 2
_CALLERS, _CONNECTIONS = 32, 4  # of each generator
_BATCH_CALLERS = 8
_WORKS = {
    "StoreResult": ("StoreResult, 64 callers", 1),
    "BatchStoreResults": (f"BatchStoreResults of {BATCH}, 16 callers", BATCH),
    "WaitFor": (f"stored in batches of {BATCH} and waited for by 8 streams", 1),
}

_Seen = dict[str, list[float]]


async def run(size: Size) -> list[Row]:
    """Rounds of one and two workers, a server each, in turn."""
    counts = {
        "StoreResult": size.of(4_000, 100),
        "BatchStoreResults": size.of(100, 24),
        "WaitFor": size.of(8_000, 200),
    }
    seen: dict[int, _Seen] = {1: defaultdict(list), 2: defaultdict(list)}
    async with resultd() as alone, resultd(workers=2) as two:
        with contextlib.ExitStack() as stack:
            sides = {}
            for workers, server in ((1, alone), (2, two)):
                generators = [
                    stack.enter_context(partner("tests.benchmarks.generator", server.address))
                    for _ in range(size.of(_GENERATORS, 1))
                ]
                sides[workers] = server, generators
            asking = stack.enter_context(ThreadPoolExecutor(_GENERATORS))
            for _ in range(size.of(4, 1)):
                for method, count in counts.items():
                    for workers, (server, generators) in sides.items():
                        _measure(server, generators, asking, method, count, seen[workers])
    rows = []
    for method, (work, _) in _WORKS.items():
        for key, what, unit in (
            ("rate", "results", "1/s"),
            ("server", "server CPU a result", "µs"),
            ("generator", "CPU of who calls, a result", "µs"),
        ):
            name = f"{method} {key}"
            rows.append(Row(f"2 workers, {work}: {what}", unit, seen[2][name], seen[1][name],
                            "1 worker"))  # fmt: skip
    return rows


def _measure(
    server: Running,
    generators: list[Partner],
    asking: ThreadPoolExecutor,
    method: str,
    count: int,
    seen: _Seen,
) -> None:
    """One method, by all generators at a time.

    The server's CPU includes what warmed it, so it is over all that was sent; the rate is
    over the time in which all generators were measured.
    """
    if method == "WaitFor":
        order: list[Any] = ["wait", count]
    else:
        for generator in generators:
            generator.ask("prepare", method, count)
        callers = _CALLERS if method == "StoreResult" else _BATCH_CALLERS
        order = ["call", method, callers, min(_CONNECTIONS, callers)]
    before_s = server.cpu_s()
    answers = list(asking.map(lambda each: each.ask(*order), generators))
    server_s = server.cpu_s() - before_s
    per_call = _WORKS[method][1]
    done = sum(answer["count"] for answer in answers) * per_call
    took_s = max(a["ended_s"] for a in answers) - min(a["began_s"] for a in answers)
    seen[f"{method} rate"].append(done / took_s)
    seen[f"{method} server"].append(server_s / (len(generators) * count * per_call) * 1e6)
    seen[f"{method} generator"].append(sum(a["cpu_s"] for a in answers) / done * 1e6)
