"""How soon a server on a large store answers, and how long the client takes to import."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import result_service_pb2_grpc
from tests.benchmarks import load as loader
from tests.benchmarks import stores
from tests.benchmarks.processes import DidNotStart, resultd
from tests.benchmarks.stores import Wanted
from tests.benchmarks.table import Row, Size, figure_at_most, left_out

_GIB = 1024**3
_ANSWER_S = 10.0
_IMPORTS = {
    "import resultd": "import resultd",
    "import of all that a first call needs": "import resultd; resultd.Client; "
    "import resultd._channel, resultd.v1.result_service_pb2_grpc",
}


async def run(size: Size) -> list[Row]:
    """Starts and imports, each beside the least there could be."""
    return [*await _starts(size), *_imports(size)]


async def _starts(size: Size) -> list[Row]:
    """From exec to the line that says it is ready, and to the first record it gives."""
    rounds = size.of(5, 1)
    large = Wanted(10_000_000 if size is Size.FULL else 100)
    seen: dict[str, list[float]] = defaultdict(list)
    work = f"start on {large.records:,} records"
    with stores.directory_for(keep=size is Size.FULL) as directory:
        data = stores.find(directory, large)
        if data is None and size is Size.TINY:
            data = await loader.build(directory, large)
        if data is None:
            return [left_out(work, large.absent())]
        try:
            for number in range(rounds):
                for name, where in (("large", data), ("empty", None)):
                    ready_s, answer_s = await _start(where, large.task_id(number))
                    seen[f"{name} ready"].append(ready_s)
                    seen[f"{name} answer"].append(answer_s)
        except DidNotStart as error:
            return [left_out(work, large.unusable(error))]
        gib = sum(file.stat().st_blocks * 512 for file in data.iterdir()) / _GIB
    return [
        Row(f"{work} ({gib:.1f} GiB): exec → {what}", "s", seen[f"large {key}"],
            seen[f"empty {key}"], "on an empty store", figure_at_most(1))
        for key, what in (("ready", "ready"), ("answer", "first answer"))
    ]  # fmt: skip


async def _start(data: Path | None, task_id: str) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as empty:
        began_s = time.perf_counter()
        async with resultd(data or Path(empty)) as server:
            ready_s = time.perf_counter() - began_s
            with grpc.insecure_channel(server.address) as channel:
                stub = result_service_pb2_grpc.ResultServiceStub(channel)
                answer = stub.GetResult(pb.GetResultRequest(task_id=task_id), timeout=_ANSWER_S)
            took_s = time.perf_counter() - began_s
            if data is not None and not answer.meta.value.data:
                raise RuntimeError(f"{task_id} is not in the store")
            return ready_s, took_s


def _imports(size: Size) -> list[Row]:
    """Of whole processes, that differ in what they import only."""
    rounds = size.of(20, 1)
    seen: dict[str, list[float]] = defaultdict(list)
    statements = {"import grpc": "import grpc", **_IMPORTS}
    with tempfile.TemporaryDirectory() as bytecode:
        for statement in statements.values():
            _process_s(statement, bytecode)  # writes it
        for _ in range(rounds):
            for name, statement in statements.items():
                seen[name].append(_process_s(statement, bytecode))
    least_s = statistics.median(seen["import grpc"])
    return [
        Row(f"{name}: over `import grpc` ({least_s * 1e3:.0f} ms)", "ms",
            [(seen[name][n] - seen["import grpc"][n]) * 1e3 for n in range(rounds)],
            target=figure_at_most(60))
        for name in _IMPORTS
    ]  # fmt: skip


def _process_s(statement: str, bytecode: str) -> float:
    # As an installer leaves it, ours as gRPC's: neither this tree nor what is set here may lack it.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
    return time.perf_counter() - began_s
