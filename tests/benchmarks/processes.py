"""Servers under measurement: started, and looked at from outside through /proc."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_READY_S = 30
_LOOK_S = 0.02


class DidNotStart(RuntimeError):
    """A server ended before it was ready."""


@dataclass(frozen=True)
class Running:
    """A server process."""

    pid: int
    address: str

    def cpu_s(self) -> float:
        """CPU seconds it has used, its threads and its workers together."""
        return sum(_cpu_s(pid) for pid in (self.pid, *_children(self.pid)))

    def rss_mib(self) -> float:
        """Memory it holds now, in MiB, pages of mapped files left out."""
        return _status_kib(self.pid, "RssAnon") / 1024

    def peak_mib(self) -> float:
        """The most memory it ever held, mapped files included, in MiB."""
        return _status_kib(self.pid, "VmHWM") / 1024


@contextlib.asynccontextmanager
async def peak_mib(running: Running) -> AsyncIterator[list[float]]:
    """The most memory it holds meanwhile, pages of mapped files left out: looked at often."""
    peak = [running.rss_mib()]

    async def look() -> None:
        while True:
            peak[0] = max(peak[0], running.rss_mib())
            await asyncio.sleep(_LOOK_S)

    looking = asyncio.create_task(look())
    try:
        yield peak
    finally:
        looking.cancel()
        peak[0] = max(peak[0], running.rss_mib())


def own_peak_mib() -> float:
    """The same of this process."""
    return _status_kib(os.getpid(), "VmHWM") / 1024


def rss_mib() -> float:
    """Memory this process holds now, in MiB, pages of mapped files left out."""
    return _status_kib(os.getpid(), "RssAnon") / 1024


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _status_kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise LookupError(field)


@contextlib.asynccontextmanager
async def resultd(data: Path | None = None, *, workers: int = 1) -> AsyncIterator[Running]:
    """A real server, on a new data directory unless one is given."""
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["-m", "resultd_server", "--data", str(data or directory)]
        arguments += ["--log-level", "error", "--workers", str(workers)]
        async with started([*arguments, "--listen", "127.0.0.1:0"]) as running:
            yield running


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[Running]:
    """A bare grpc.aio server that returns what it gets: the floor of any RPC."""
    async with started(["-m", "tests.benchmarks.echo_server"]) as running:
        yield running


@contextlib.asynccontextmanager
async def batch_floor() -> AsyncIterator[Running]:
    """A server that stores batches and has no rules."""
    async with started(["-m", "tests.benchmarks.batch_floor"]) as running:
        yield running


@contextlib.asynccontextmanager
async def started(arguments: list[str]) -> AsyncIterator[Running]:
    """A Python program that says on its first line, last, where it listens.

    Raises DidNotStart: what it wrote to the standard error says why.
    """
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), _READY_S)
        if not line:
            raise DidNotStart(f"it ended with code {process.wait()} before it was ready")
        yield Running(process.pid, line.split()[-1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()
