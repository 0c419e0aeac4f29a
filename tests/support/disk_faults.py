"""Disks that break or fill up under a live server, and what has to hold meanwhile.

outcome = await break_disk(directory, BREAKS["sync of the store"], seed)
with small_disk(directory) as disk:
    outcome = fill_disk(disk, directory, seed)
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from resultd.v1 import (
    group_service_pb2,
    group_service_pb2_grpc,
    result_service_pb2_grpc,
    state_pb2,
    stream_pb2,
)
from resultd.v1 import result_service_pb2 as pb
from resultd_server.serve import EXIT_STORE_FAILED
from tests.support import addresses, http, reports
from tests.support.acknowledged import Load
from tests.support.in_process import until
from tests.support.memory import MIB
from tests.support.refusals import taken_apart
from tests.support.server_process import ServerProcess

REAL = ("resultd_server",)
FLAGS = ("--log-level", "error", "--workers", "1")
EXIT_S = 1.0
"""How long a server may live on a disk that has failed."""

SETTLE_S = 20.0
DISK_BYTES = 24 * MIB
BALLAST_BYTES = 8 * MIB
VALUE_BYTES = 64 * 1024
MAP_BYTES = 2 * MIB
TTL_S = 2
FEW = 4
RESTARTS = 3
GROUP = "g"
CALL_S = 10.0


@dataclass
class Outcome:
    """What a fault came to.

    `broken`: the laws that were, a sentence each. `acknowledged`: writes that were answered.
    """

    acknowledged: int = 0
    refused: int = 0
    exit_s: float = 0.0
    broken: list[str] = field(default_factory=list)


class Break(NamedTuple):
    """A system call that fails from some moment on, in files of these names."""

    call: str
    files: tuple[str, ...]


JOURNAL, STORE = ("journal.0", "journal.1"), ("data.mdb",)
BREAKS = {
    "write of the journal": Break("pwrite64", JOURNAL),
    "write of the store": Break("pwrite64", STORE),
    "sync of the store": Break("fdatasync", STORE),
}
"""The journal is opened with O_DSYNC: to write it is to sync it."""


@functools.cache
def no_strace() -> str | None:
    """Why no system call can be made to fail here; None if it can."""
    if shutil.which("strace") is None:
        return "strace is not on this machine"
    command = ["strace", "-f", "-q", "-e", "inject=fdatasync:error=EIO", "-o", os.devnull, "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"strace cannot trace: {tried.stderr.strip()}" if tried.returncode else None


async def break_disk(
    directory: Path,
    how: Break,
    seed: int,
    program: tuple[str, ...] = REAL,
    settle_s: float = SETTLE_S,
) -> Outcome:
    """A disk breaks under load: the server has to say NOT_SERVING and end, without a lie."""
    dice = random.Random(seed)
    load, outcome = Load(seed), Outcome()
    server = ServerProcess(directory, *FLAGS, program=program).start()
    running = asyncio.create_task(load.run(server.address))
    enough = dice.randint(1, 400)
    await until(lambda: load.acknowledged >= enough)
    health = asyncio.create_task(_last_word(server.address))
    trace = directory / "strace.txt"
    pid = server.process.pid
    strace = await asyncio.to_thread(_inject, how, directory / "data", pid, trace)
    try:
        once = dice.random() < 0.5
        outcome.exit_s = await asyncio.wait_for(_ends(server, trace, strace, once=once), settle_s)
    except asyncio.TimeoutError:
        outcome.broken.append("the server goes on though its disk has failed")
        server.kill()
    else:
        if (code := server.wait()) != EXIT_STORE_FAILED:
            outcome.broken.append(f"the server ended with {code}: {server.log()[-500:]}")
        if outcome.exit_s > EXIT_S:
            outcome.broken.append(f"the server ended {outcome.exit_s} s after its disk had failed")
    finally:
        strace.terminate()
        await asyncio.to_thread(strace.communicate)
    await running
    if (word := await health) != "NOT_SERVING":
        outcome.broken.append(f"the last that health said was {word}")
    with ServerProcess(directory, *FLAGS) as again:
        outcome.broken += await load.missing(again.address)
    outcome.acknowledged = load.acknowledged
    return outcome


def _inject(how: Break, data: Path, pid: int, trace: Path) -> subprocess.Popen[bytes]:
    """Has the call fail with EIO from its next time on."""
    files = [part for name in how.files for part in ("-P", str(data / name))]
    command = ["strace", "-f", "-e", f"trace={how.call}", "-e", f"inject={how.call}:error=EIO"]
    command += [*files, "-o", str(trace), "-p", str(pid)]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert strace.stderr is not None
    said = strace.stderr.readline()
    assert b"attached" in said, said
    return strace


async def _ends(
    server: ServerProcess, trace: Path, strace: subprocess.Popen[bytes], *, once: bool
) -> float:
    """Seconds from the first failure to the end, without those that other processes had.

    `once`: the disk is well again after that.
    """
    pid = server.process.pid
    failed_s = waited_s = lately_s = 0.0
    while server.process.poll() is None:
        if not failed_s and _has_failed(trace):
            failed_s, waited_s = time.monotonic(), _waited_s(pid)
            if once:
                strace.terminate()
        lately_s = max(lately_s, _waited_s(pid))
        await asyncio.sleep(0.005)
    assert failed_s, "no call has failed"
    return round(time.monotonic() - failed_s - (lately_s - waited_s), 3)


def _has_failed(trace: Path) -> bool:
    return "(INJECTED)" in trace.read_text()


def _waited_s(pid: int) -> float:
    """How long a process's first thread was ready to run and others did; 0 once it is gone."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


async def _last_word(address: str) -> str:
    """What a watcher of the server's health hears last."""
    word = "nothing"
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for said in stub.Watch(health_pb2.HealthCheckRequest()):
                word = health_pb2.HealthCheckResponse.ServingStatus.Name(said.status)
    return word


@functools.cache
def no_small_disk() -> str | None:
    """Why there can be no filesystem of a few MiB here; None if there can."""
    if os.geteuid():
        return "only root may mount"
    try:
        with tempfile.TemporaryDirectory() as directory, small_disk(Path(directory)):
            return None
    except subprocess.CalledProcessError as error:
        return f"tmpfs cannot be mounted: {error.stderr.decode().strip()}"


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A filesystem of 24 MiB, mounted there. Raises CalledProcessError."""
    where = directory / "small"
    where.mkdir()
    size = f"size={DISK_BYTES}"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(where)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def fill_disk(
    disk: Path,
    directory: Path,
    seed: int,
    program: tuple[str, ...] = REAL,
    settle_s: float = SETTLE_S,
) -> Outcome:
    """The disk is full for a while: what was stored is there, and what makes room goes on.

    So it does in a server that ends meanwhile and starts again, with not a block left.
    """
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    with _Full(directory, disk / "data", seed, program, settle_s) as full:
        full.fill()
        full.look()
        full.forget(FEW)
        with taken(disk):
            for _ in range(RESTARTS):
                full.restart()
                full.read()
                full.forget(1)
        ballast.unlink()
        full.resume("there is room on the disk")
    return full.outcome


@contextlib.contextmanager
def taken(disk: Path) -> Iterator[None]:
    """All that is left of a disk is somebody else's."""
    ballast = disk / "taken"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    ballast.unlink()


def fill_map(
    directory: Path, seed: int, program: tuple[str, ...] = REAL, settle_s: float = SETTLE_S
) -> Outcome:
    """The store has all it may have: forgetting makes room, or expiry alone."""
    by_expiry = random.Random(seed).random() < 0.5
    limit = ("--max-db-bytes", str(MAP_BYTES))
    with _Full(directory, directory / "data", seed, program, settle_s, limit, by_expiry) as full:
        full.fill()
        full.look()
        if not by_expiry:
            full.forget(len(full.stored) // 2)
        full.resume("records have expired" if by_expiry else "half of it was forgotten")
    return full.outcome


class _Full:
    """A server that is filled, and the record of what it acknowledged."""

    def __init__(
        self,
        directory: Path,
        data: Path,
        seed: int,
        program: tuple[str, ...],
        settle_s: float,
        flags: tuple[str, ...] = (),
        short_lived: bool = False,
    ) -> None:
        self.outcome = Outcome()
        self.stored: dict[str, bytes] = {}
        self._dice = random.Random(seed)
        self._settle_s = settle_s
        self._short_lived = short_lived
        self._admin = addresses.free_address()
        said = ("--data", str(data), "--admin", self._admin, *FLAGS, *flags)
        self._server = ServerProcess(directory, *said, program=program)
        self._again = ServerProcess(directory, *said, program=program)

    def __enter__(self) -> _Full:
        self._connect(self._server.start())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._disconnect(self._server)
        if kind is not None:
            return
        self._connect(self._again.start())
        for task_id, data in self.stored.items():
            self._check(task_id, data)
        asked = group_service_pb2.GetGroupRequest(group_id=GROUP)
        group = self._groups.GetGroup(asked, timeout=CALL_S).group
        if group.existence == state_pb2.EXISTENCE_KNOWN:
            self._broken("a group that was deleted is there again")
        self._disconnect(self._again)

    def _connect(self, server: ServerProcess) -> None:
        self._channel = grpc.insecure_channel(server.address)
        self._results = result_service_pb2_grpc.ResultServiceStub(self._channel)
        self._groups = group_service_pb2_grpc.GroupServiceStub(self._channel)

    def _disconnect(self, server: ServerProcess) -> None:
        self._channel.close()
        if (code := server.stop()) != 0:
            self._broken(f"the server ended with {code}")

    def _broken(self, what: str) -> None:
        self.outcome.broken.append(what)

    def fill(self) -> None:
        """Stores until it is refused: with STORE_FULL and nothing else."""
        begun = group_service_pb2.CreateGroupRequest(group_id=GROUP)
        self._groups.CreateGroup(begun, timeout=CALL_S)
        for number in range(1_000):
            # Some stay, some are to expire while it is full; the others do either.
            stays = number >= 2 * FEW and not self._short_lived
            ttl_s = 0 if number < FEW or stays else TTL_S
            if (reason := self._store(f"t{number}", ttl_s)) != "":
                break
        self.outcome.refused += 1
        if reason != "STORE_FULL":
            self._broken(f"refused with {reason or 'nothing, ever'}, not with STORE_FULL")

    def restart(self) -> None:
        """It ends, killed or told to, and starts again."""
        self._channel.close()
        if self._dice.random() < 0.5:
            self._server.kill()
        elif (code := self._server.stop()) != 0:
            self._broken(f"the server ended with {code} on a full disk")
        self._connect(self._server.start())
        if (reason := self._store("more", TTL_S)) != "STORE_FULL":
            self._broken(f"a server that started on a full disk refuses with {reason or 'nothing'}")

    def read(self) -> None:
        """Reads go on."""
        for task_id in self._dice.sample(sorted(self.stored), FEW):
            self._check(task_id, self.stored[task_id])

    def look(self) -> None:
        """Reads, waits and deleting go on, and so does expiry."""
        self.read()
        try:
            self._wait(self._dice.choice(sorted(self.stored)))
            self._delete_group()
        except grpc.RpcError as error:
            said = taken_apart(error)
            self._broken(f"a wait or deleting is refused with {said.reason or error.code().name}")
        self._until(lambda: self._expired() >= FEW, "expiry goes on")

    def _wait(self, task_id: str) -> None:
        """A wait for what was stored is told of it, and ends."""
        request = pb.WaitForRequest(task_ids=[task_id])
        frames = list(self._results.WaitFor(request, timeout=CALL_S))
        found = [event.task.value.data for frame in frames for event in frame.events]
        if found != [self.stored[task_id]]:
            self._broken(f"a wait for {task_id} is told of {len(found)} other results")
        if frames[-1].control.end_reason != stream_pb2.END_REASON_COMPLETE:
            self._broken(f"a wait for {task_id} ends with {frames[-1].control}")

    def _delete_group(self) -> None:
        """A group can be deleted, and who follows it is told."""
        followed = self._results.Iterate(pb.IterateRequest(group_id=GROUP), timeout=CALL_S)
        next(followed)  # it is read from here on
        asked = group_service_pb2.DeleteGroupRequest(group_id=GROUP)
        if not self._groups.DeleteGroup(asked, timeout=CALL_S).deleted:
            self._broken("a group is not deleted")
        *_, last = followed
        if last.control.end_reason != stream_pb2.END_REASON_GONE:
            self._broken(f"who follows a deleted group hears {last.control}")

    def forget(self, count: int) -> None:
        """Forgetting goes on."""
        gone = self._dice.sample(sorted(self.stored), count)
        try:
            answer = self._results.ForgetResults(pb.ForgetResultsRequest(task_ids=gone), timeout=10)
        except grpc.RpcError as error:
            self._broken(f"forgetting is refused with {taken_apart(error).reason}")
            return
        if answer.forgotten != count:
            self._broken(f"{answer.forgotten} of {count} are forgotten")
        for task_id in gone:
            del self.stored[task_id]

    def resume(self, since: str) -> None:
        """Writes are taken again."""
        self._until(lambda: self._store("later") == "", f"writes are taken again when {since}")

    def _expired(self) -> float:
        return http.value(http.get(self._admin, "/metrics")[1], "resultd_expired_total")

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._settle_s
        while not condition():
            if time.monotonic() > deadline:
                self._broken(f"not so within {self._settle_s:g} s: {what}")
                return
            time.sleep(0.05)

    def _store(self, task_id: str, ttl_s: int = 0) -> str:
        """Why a report is not stored; empty if it is."""
        data = self._dice.randbytes(self._dice.randint(VALUE_BYTES // 2, VALUE_BYTES))
        request = reports.success(task_id, data)
        if ttl_s:
            request.ttl.seconds = ttl_s
        try:
            self._results.StoreResult(request, timeout=10)
        except grpc.RpcError as error:
            return taken_apart(error).reason or error.code().name
        self.outcome.acknowledged += 1
        if not ttl_s:
            self.stored[task_id] = data
        return ""

    def _check(self, task_id: str, data: bytes) -> None:
        try:
            found = self._results.GetResult(pb.GetResultRequest(task_id=task_id), timeout=10)
        except grpc.RpcError as error:
            self._broken(f"reading is refused with {taken_apart(error).reason}")
            return
        if found.meta.value.data != data:
            self._broken(f"{task_id} is not as it was stored")
