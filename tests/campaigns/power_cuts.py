"""The power goes: `python -m tests.campaigns.power_cuts --size deep --seed S`.

A server under load on a filesystem of its own, which is shut down in the middle without
writing anything back, as by a power cut; then mounted again, and a new server is asked
for everything that was acknowledged. Needs root.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns._record import Campaign, Size, Tally
from tests.support.acknowledged import Load
from tests.support.server_process import ServerProcess

IMAGE_BYTES = 512 * 1024 * 1024
MAKE = {"ext4": ("mkfs.ext4", "-q"), "xfs": ("mkfs.xfs", "-q")}
LATEST_S = 3.0
"""Cuts come up to so late: before, while and after the first checkpoints."""

LET_GO_S = 60.0

_SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
_WRITE_NOTHING_BACK = 2


@dataclass(frozen=True)
class Cut:
    """What one cut came to."""

    acknowledged: int
    after_s: float
    missing: list[str]


def why_not(filesystem: str) -> str | None:
    """Why there can be no cuts here; None if there can."""
    if os.geteuid():
        return "only root may mount"
    if shutil.which(MAKE[filesystem][0]) is None:
        return f"{MAKE[filesystem][0]} is not on this machine"
    free = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    if free.returncode:
        return f"no loop device: {free.stderr.strip()}"
    with tempfile.TemporaryDirectory() as directory:
        try:
            with _image(filesystem, Path(directory)) as (mount, _):
                mount()
        except subprocess.CalledProcessError as error:
            return f"{filesystem} cannot be mounted: {error.stderr.decode().strip()}"
    return None


def cut(filesystem: str, seed: int, module: str = "resultd_server") -> Cut:
    """Loads a server, cuts its power, starts it again and compares."""
    chance = random.Random(seed)
    load = Load(chance.randrange(2**32))
    after_s = chance.uniform(0.05, LATEST_S)
    with (
        tempfile.TemporaryDirectory(prefix="resultd-cut-") as directory,
        _image(filesystem, Path(directory)) as (mount, unmount),
    ):
        where = mount()
        flags = ("--data", str(where / "data"), "--log-level", "error", "--workers", "1")
        server = ServerProcess(Path(directory), *flags, program=(module,)).start()
        asyncio.run(_until_cut(load, server.address, where, after_s))
        server.kill()
        unmount()
        mount()
        with ServerProcess(Path(directory), *flags) as server:
            missing = asyncio.run(load.missing(server.address))
    return Cut(load.acknowledged, after_s, missing)


async def _until_cut(load: Load, address: str, where: Path, after_s: float) -> None:
    running = asyncio.create_task(load.run(address))
    await asyncio.sleep(after_s)
    descriptor = os.open(where, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WRITE_NOTHING_BACK))
    finally:
        os.close(descriptor)
    await running


_Mounting = tuple[Callable[[], Path], Callable[[], None]]


@contextlib.contextmanager
def _image(filesystem: str, directory: Path) -> Iterator[_Mounting]:
    """A new filesystem in a file; how to mount and unmount it."""
    image, where = directory / "image", directory / "mounted"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    _run(*MAKE[filesystem], str(image))
    where.mkdir()

    def mount() -> Path:
        _run("mount", "-o", "loop", "-t", filesystem, str(image), str(where))
        return where

    def unmount() -> None:
        _run("umount", str(where))
        # Another mount namespace may have a copy: mounted again, it would be the one that was cut.
        deadline = time.monotonic() + LET_GO_S
        while _run("losetup", "--associated", str(image)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{image} is held elsewhere for {LET_GO_S:g} s")
            time.sleep(0.1)

    try:
        yield mount, unmount
    finally:
        if where.is_mount():
            unmount()


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


@dataclass(frozen=True)
class Plan:
    """How many cuts on each filesystem, and which module the server is."""

    cuts: int
    module: str = "resultd_server"


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan; a filesystem that cannot be had here is left out, and said so."""
    tally = Tally()
    for filesystem in MAKE:
        reason = why_not(filesystem)
        if reason is not None:
            print(f"{filesystem}: left out, {reason}")
            continue
        for each in range(seed, seed + plan.cuts):
            found = cut(filesystem, each, plan.module)
            tally.counts[f"cuts on {filesystem}"] += 1
            tally.counts["writes acknowledged"] += found.acknowledged
            for line in found.missing:
                where = f"{filesystem}, seed {each}, cut after {found.after_s:.2f} s"
                tally.faults.append(f"{where}: {line}")
    return tally


CAMPAIGN = Campaign(
    "power_cuts",
    "When the power goes under load nothing that was acknowledged is missing afterwards.",
    {Size.CI: Plan(cuts=1), Size.DEEP: Plan(cuts=5), Size.RELEASE: Plan(cuts=200)},
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
