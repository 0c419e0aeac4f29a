"""The disk fails or is full under a live server."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import result_service_pb2_grpc
from resultd_server.serve import EXIT_STORE_FAILED
from tests.support import reports
from tests.support.acknowledged import Load
from tests.support.in_process import until
from tests.support.refusals import taken_apart
from tests.support.server_process import ServerProcess

MIB = 1024 * 1024
QUIET = ("--log-level", "error")


async def fail(call: str, pid: int) -> asyncio.subprocess.Process:
    """From its next one on, a system call of a process fails with EIO."""
    return await asyncio.create_subprocess_exec(
        "strace", "-f", "-q", "-e", f"trace={call}", "-e", f"inject={call}:error=EIO",
        "-o", os.devnull, "-p", str(pid), stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not on this machine")
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
async def test_a_broken_disk_ends_the_server_and_nobody_is_told_a_lie(
    tmp_path: Path, call: str
) -> None:
    """Where the journal's write or a checkpoint's sync fails, the server ends; nothing is lost."""
    load = Load(seed=3)
    server = ServerProcess(tmp_path, "--log-level", "error", "--workers", "1").start()
    running = asyncio.create_task(load.run(server.address))
    await until(lambda: load.acknowledged > 50)
    strace = await fail(call, server.process.pid)
    try:
        code = await asyncio.to_thread(server.wait)
    finally:
        if strace.returncode is None:
            strace.terminate()
        await strace.communicate()
    await running
    assert code == EXIT_STORE_FAILED, server.log()
    with ServerProcess(tmp_path, *QUIET) as again:
        assert await load.missing(again.address) == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 24 MiB."""
    if os.geteuid():
        pytest.skip("only root may mount")
    where = tmp_path / "small"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(where)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted: {mounted.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def refusal(results: result_service_pb2_grpc.ResultServiceStub, task_id: str) -> str:
    """The reason why a report is not stored; empty if it is."""
    try:
        results.StoreResult(reports.success(task_id, bytes(64 * 1024)), timeout=10)
    except grpc.RpcError as error:
        return taken_apart(error).reason
    return ""


async def test_a_full_disk_is_a_mode_that_can_be_left(small: Path, tmp_path: Path) -> None:
    """On a full disk writes are STORE_FULL; reads and forgetting go on; with room, all does."""
    ballast = small / "ballast"
    ballast.write_bytes(bytes(8 * MIB))
    flags = ("--data", str(small / "data"), "--log-level", "error", "--workers", "1")
    stored: list[str] = []
    with (
        ServerProcess(tmp_path, *flags) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        results = result_service_pb2_grpc.ResultServiceStub(channel)
        for number in range(1_000):
            if (reason := refusal(results, f"t{number}")) != "":
                break
            stored.append(f"t{number}")
        assert reason == "STORE_FULL"
        found = results.BatchGetResults(pb.BatchGetResultsRequest(task_ids=stored[:5]))
        assert [len(meta.value.data) for meta in found.metas] == [64 * 1024] * 5
        gone = [stored.pop() for _ in range(3)]
        assert results.ForgetResults(pb.ForgetResultsRequest(task_ids=gone)).forgotten == 3
        ballast.unlink()
        await until(lambda: refusal(results, "later") == "")
        stored.append("later")
    with (
        ServerProcess(tmp_path, *flags) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        results = result_service_pb2_grpc.ResultServiceStub(channel)
        for task_id in stored:
            (meta,) = results.BatchGetResults(pb.BatchGetResultsRequest(task_ids=[task_id])).metas
            assert len(meta.value.data) == 64 * 1024
