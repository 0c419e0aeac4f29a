"""How soon a server that was away is found: its return → a waiting store and wait are through."""

from __future__ import annotations

import asyncio
import threading
import time

import resultd
from resultd.testing import Server
from tests.benchmarks.table import Row, Size


async def run(size: Size) -> list[Row]:
    """After short and long absences; the server is killed, so nobody says goodbye."""
    rounds = size.of(4, 1)
    rows = []
    for away_s in (1, 6) if size is Size.FULL else (0,):
        stores, waits = [], []
        for _ in range(rounds):
            store_s, wait_s = await asyncio.to_thread(_once, away_s)
            stores.append(store_s)
            waits.append(wait_s)
        rows.append(Row(f"server away {away_s} s: its return → a waiting store's OK", "s", stores))
        rows.append(Row(f"server away {away_s} s: its return → a wait goes on", "s", waits))
    return rows


def _once(away_s: float) -> tuple[float, float]:
    through: dict[str, float] = {}
    with Server() as server, resultd.Client(f"{server.url}?timeout=60") as client:
        client.store_result("before", 1)

        def wait() -> None:
            client.AsyncResult("after").get(timeout=60)
            through["wait"] = time.perf_counter()

        def store() -> None:
            client.store_result("after", 1)
            through["store"] = time.perf_counter()

        threads = [threading.Thread(target=wait), threading.Thread(target=store)]
        threads[0].start()
        while not client.watcher().streaming:
            time.sleep(0.005)
        server.kill()
        threads[1].start()
        time.sleep(away_s)
        server.start()
        back = time.perf_counter()
        for thread in threads:
            thread.join(60)
    return through["store"] - back, through["wait"] - back
