"""A disk that does not answer: nothing fails, and nothing goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from resultd.v1 import result_service_pb2 as pb
from resultd_server.engine.journal import FILES
from resultd_server.service.health import NOT_SERVING, SERVING
from tests.support import reports
from tests.support.addresses import free_address
from tests.support.frames import Frames
from tests.support.http import get_soon
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

NEVER_US = 3_600 * 10**6


@contextlib.asynccontextmanager
async def held(pid: int, *files: Path) -> AsyncIterator[None]:
    """Has what a process writes to files hang."""
    only = [word for file in files for word in ("-P", str(file))]
    strace = await asyncio.create_subprocess_exec(
        "strace", "-f", "-e", "trace=pwrite64", "-e", f"inject=pwrite64:delay_enter={NEVER_US}",
        *only, "-o", os.devnull, "-p", str(pid), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert strace.stderr is not None
        said = await strace.stderr.readline()
        assert b"attached" in said, said
        yield
    finally:
        if strace.returncode is None:
            strace.terminate()
        await strace.communicate()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not on this machine")
async def test_a_write_that_hangs_is_told_and_goes_on(tmp_path: Path) -> None:
    """Neither live nor ready nor SERVING while the journal's write hangs; reads go on."""
    admin = free_address()
    flags = ("--admin", admin, "--workers", "1")
    journal = [tmp_path / "data" / name for name in FILES]
    program = ("tests.support.impatient_server",)
    with ServerProcess(tmp_path, *flags, program=program) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stubs = Stubs(channel)
            await stubs.results.StoreResult(reports.success("t1"))
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch = Frames(health.Watch(health_pb2.HealthCheckRequest()))
            assert (await watch.next()).status == SERVING
            async with held(server.process.pid, *journal):
                write = asyncio.ensure_future(stubs.results.StoreResult(reports.success("t2")))
                assert (await watch.next()).status == NOT_SERVING
                for path in ("/livez", "/readyz"):
                    status, why = await get_soon(admin, path)
                    assert (status, "one commit has taken" in why) == (503, True)
                wanted = pb.BatchGetResultsRequest(task_ids=["t1", "t2"])
                found = (await stubs.results.BatchGetResults(wanted)).metas
                assert [meta.terminal for meta in found] == [True, False]
                assert not write.done()
            await write
            assert (await watch.next()).status == SERVING
            assert await get_soon(admin, "/readyz") == (200, "ok\n")
