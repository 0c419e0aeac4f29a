"""Iterate of ready members: results a second, and the memory of both sides.

The reader is a process of its own with the blocking stub, parsing every record, so that
its peak is its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc

from resultd.v1 import group_service_pb2, result_service_pb2_grpc
from resultd.v1 import result_service_pb2 as pb
from tests.benchmarks.processes import own_peak_mib, resultd
from tests.benchmarks.store import report
from tests.benchmarks.stubs import groups, results
from tests.benchmarks.table import Row, Size

_LOAD_BATCH = 1_000
_MODULE = "tests.benchmarks.iterate"


async def run(size: Size) -> list[Row]:
    """The same group in two sizes, and a file of the same frames as the yardstick."""
    small, large, rounds = size.of(10_000, 200), size.of(100_000, 400), size.of(5, 1)
    rate, file_rate, server_mib, peaks = [], [], [], []
    async with resultd() as server:
        with tempfile.TemporaryDirectory() as directory:
            frames = Path(directory) / "frames"
            await _fill(server.address, "small", small)
            await _fill(server.address, "large", large)
            small_peak = (await _reader("grpc", server.address, "small"))["peak_mib"]
            before_mib = server.rss_mib()
            await _reader("save", server.address, "large", str(frames))
            for _ in range(rounds):
                seen = await _reader("grpc", server.address, "large")
                rate.append(large / seen["took_s"])
                peaks.append(seen["peak_mib"])
                server_mib.append(server.rss_mib() - before_mib)
                file_rate.append(large / (await _reader("file", str(frames)))["took_s"])
        server_peak = server.peak_mib()
    return [
        Row(f"Iterate {large:,} ready members: results", "1/s", rate, file_rate,
            "decoding the same frames from a file"),
        Row(f"Iterate {large:,}: reader's peak", "MiB", peaks, [small_peak],
            f"the same of {small:,}"),
        Row(f"Iterate {large:,}: server's memory over that before", "MiB", server_mib),
        Row("server's peak, mapped store included", "MiB", [server_peak]),
    ]  # fmt: skip


async def _fill(address: str, group_id: str, members: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        for start in range(0, members, _LOAD_BATCH):
            numbers = range(start, min(start + _LOAD_BATCH, members))
            reports = [report(f"{group_id}-{number}", group_id) for number in numbers]
            await results(channel).BatchStoreResults(pb.BatchStoreResultsRequest(reports=reports))
        sealing = group_service_pb2.SealGroupRequest(group_id=group_id)
        await groups(channel).SealGroup(sealing)


async def _reader(*arguments: str) -> dict[str, float]:
    """Runs a reader in a process of its own; what it saw."""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", _MODULE, *arguments], check=True, capture_output=True
    )
    seen: dict[str, float] = json.loads(done.stdout)
    return seen


def _read_grpc(address: str, group_id: str, save_to: str | None = None) -> None:
    seen = 0
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
        stub = result_service_pb2_grpc.ResultServiceStub(channel)
        began_s = time.perf_counter()
        saved = Path(save_to).open("wb") if save_to else None  # noqa: SIM115  closed below
        for frame in stub.Iterate(pb.IterateRequest(group_id=group_id)):
            seen += sum(len(event.task.value.data) > 0 for event in frame.events)
            if saved is not None:
                encoded = frame.SerializeToString()
                saved.write(len(encoded).to_bytes(4, "big") + encoded)
        if saved is not None:
            saved.close()
    _say(began_s, seen)


def _read_file(path: str) -> None:
    seen = 0
    began_s = time.perf_counter()
    with Path(path).open("rb") as saved:
        while length := saved.read(4):
            frame = pb.IterateResponse.FromString(saved.read(int.from_bytes(length, "big")))
            seen += sum(len(event.task.value.data) > 0 for event in frame.events)
    _say(began_s, seen)


def _say(began_s: float, seen: int) -> None:
    took_s = time.perf_counter() - began_s
    print(json.dumps({"took_s": took_s, "seen": seen, "peak_mib": own_peak_mib()}))


if __name__ == "__main__":
    _, how, *rest = sys.argv
    if how == "file":
        _read_file(*rest)
    else:
        _read_grpc(*rest)
