"""Asking a server's admin port, and reading what it counts."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

SECONDS_MAX = 10

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]
"""By name, and by the labels without `worker`: summed over the workers."""


def get(address: str, path: str) -> tuple[int, str]:
    """(status, body) of a GET."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=SECONDS_MAX) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def get_soon(address: str, path: str) -> tuple[int, str]:
    """The same, of a server on this very event loop."""
    return await asyncio.to_thread(get, address, path)


def samples(page: str) -> Samples:
    """What a page of metrics says."""
    found: Samples = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "worker"}
            rows = found.setdefault(sample.name, {})
            key = tuple(sorted(labels.items()))
            rows[key] = rows.get(key, 0) + sample.value
    return found


def value(page: str, name: str, **labels: str) -> float:
    """One number, 0 if it is not there."""
    return samples(page).get(name, {}).get(tuple(sorted(labels.items())), 0)
