"""Iterate of ready members: results a second, and the memory of both sides.

The reader is a process of its own with the blocking stub, parsing every record, so that
its peak is its own. The yardsticks: decoding the same frames from a file, and etcd, asked
for the same number of values of 300 bytes, page by page.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import result_service_pb2_grpc
from tests.benchmarks import etcd, stores
from tests.benchmarks import load as loader
from tests.benchmarks.processes import DidNotStart, own_peak_mib, peak_mib, resultd
from tests.benchmarks.stores import GROUP, Kind, Wanted
from tests.benchmarks.table import Row, Size, at_least, at_most, left_out

_PASS_S = 300.0
_MODULE = "tests.benchmarks.iterate"
_FILE = "decoding the same frames from a file"
_SERVER_PEAK = "server's peak, mapped pages of the store left out"
_ETCD = f"etcd, ranges of {etcd.PAGE:,}"

_Seen = dict[str, list[float]]


async def run(size: Size) -> list[Row]:
    """Groups of three sizes, the smallest only for its memory; tiny, of one."""
    counts = (10_000, 100_000, 1_000_000) if size is Size.FULL else (400, 400, 400)
    small, middle, large = (Wanted(count, Kind.GROUP) for count in counts)
    seen: dict[Wanted, _Seen] = defaultdict(lambda: defaultdict(list))
    missing = etcd.why_no_etcd()
    with (
        stores.directory_for(keep=size is Size.FULL) as directory,
        tempfile.TemporaryDirectory() as frames,
        _etcd(middle.records, missing) as beside,
    ):
        for wanted in dict.fromkeys((small, middle, large)):
            rounds = size.of(5 if wanted == middle else 3, 1)
            other = beside if wanted == middle else None
            try:
                data = stores.find(directory, wanted)
                data = data or await loader.build(directory, wanted, print)
                await _measure(wanted, data, Path(frames), rounds, other, seen[wanted])
            except DidNotStart as error:
                return [left_out(f"Iterate {wanted.records:,}", wanted.unusable(error))]
    return [
        *_rate_rows(middle, seen[middle], missing),
        *(_rate_rows(large, seen[large], None) if large != middle else ()),
        *(
            Row(f"Iterate {large.records:,}: {whose}", "MiB", seen[large][key], seen[small][key],
                f"the same of {small.records:,}", at_most(1.2))
            for key, whose in (("reader", "reader's peak"), ("server", _SERVER_PEAK))
        ),
    ]  # fmt: skip


def _rate_rows(wanted: Wanted, seen: _Seen, missing: str | None) -> list[Row]:
    work = f"Iterate {wanted.records:,} ready members: results"
    rows = [Row(work, "1/s", seen["rate"], seen["file"], _FILE, at_least(0.3))]
    if missing is not None:
        rows.append(left_out(f"{work}, beside {_ETCD}", missing))
    elif seen["etcd"]:
        rows.append(Row(work, "1/s", seen["rate"], seen["etcd"], _ETCD))
    return rows


async def _measure(
    wanted: Wanted, data: Path, frames: Path, rounds: int, beside: str | None, seen: _Seen
) -> None:
    """Of a server that serves nothing else. The first pass, that saves the frames, warms it."""
    saved = frames / wanted.name
    async with resultd(data) as server:
        await reader("save", server.address, GROUP, str(saved))
        for _ in range(rounds):
            async with peak_mib(server) as peak:
                read = await reader("grpc", server.address, GROUP)
            if read["seen"] != wanted.members:
                raise RuntimeError(f"{read['seen']:,.0f} of {wanted.members:,} members came")
            seen["rate"].append(wanted.members / read["took_s"])
            seen["reader"].append(read["peak_mib"])
            seen["server"].append(peak[0])
            seen["file"].append(wanted.members / (await reader("file", str(saved)))["took_s"])
            if beside is not None:
                seen["etcd"].append(wanted.members / (await reader("etcd", beside))["took_s"])
    saved.unlink()


@contextlib.contextmanager
def _etcd(values: int, missing: str | None) -> Iterator[str | None]:
    if missing is not None:
        yield None
        return
    with etcd.etcd(values) as address:
        yield address


async def reader(*arguments: str) -> dict[str, float]:
    """Runs a reader in a process of its own; what it saw."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", _MODULE, *arguments],
        check=True,
        stdout=subprocess.PIPE,
    )
    seen: dict[str, float] = json.loads(done.stdout)
    return seen


def _read_grpc(address: str, group_id: str, save_to: str | None = None) -> None:
    seen = 0
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=10)
        stub = result_service_pb2_grpc.ResultServiceStub(channel)
        saved = Path(save_to).open("wb") if save_to else None  # noqa: SIM115  closed below
        began_s = time.perf_counter()
        for frame in stub.Iterate(pb.IterateRequest(group_id=group_id), timeout=_PASS_S):
            seen += sum(len(event.task.value.data) > 0 for event in frame.events)
            if saved is not None:
                encoded = frame.SerializeToString()
                saved.write(len(encoded).to_bytes(4, "big") + encoded)
        took_s = time.perf_counter() - began_s
        if saved is not None:
            saved.close()
    _say(took_s, seen)


def _read_file(path: str) -> None:
    seen = 0
    began_s = time.perf_counter()
    with Path(path).open("rb") as saved:
        while length := saved.read(4):
            frame = pb.IterateResponse.FromString(saved.read(int.from_bytes(length, "big")))
            seen += sum(len(event.task.value.data) > 0 for event in frame.events)
    _say(time.perf_counter() - began_s, seen)


def _read_etcd(address: str) -> None:
    seen, took_s = etcd.read(address)
    _say(took_s, seen)


def _say(took_s: float, seen: int) -> None:
    print(json.dumps({"took_s": took_s, "seen": seen, "peak_mib": own_peak_mib()}))


_READERS: dict[str, Callable[..., None]] = {
    "grpc": _read_grpc,
    "save": _read_grpc,
    "file": _read_file,
    "etcd": _read_etcd,
}

if __name__ == "__main__":
    _, how, *rest = sys.argv
    _READERS[how](*rest)
