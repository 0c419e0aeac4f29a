"""Several server processes over one store and one port: started, watched, started again.

The supervisor holds the data directory and the port and serves nothing itself. A worker that
dies is started again; one whose store failed takes everybody along, as a lone server would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import tempfile
import time
from http import HTTPStatus
from pathlib import Path

import structlog

from resultd_server import listening
from resultd_server.admin import AdminServer, Answer, fetch, verdict
from resultd_server.app import Place
from resultd_server.config import Settings
from resultd_server.engine.lease import Lease

READY_S = 60.0
"""What a worker has to become ready."""

AGAIN_S = 0.1
AGAIN_MAX_S = 5.0
STEADY_S = 30.0
"""A worker that lived so long is started again at once."""

STOPPING_S = 5.0
"""What workers have to end beyond the time they have to drain."""

log = structlog.get_logger("resultd.server")


def order(settings: Settings, place: Place) -> bytes:
    """The line that starts a worker."""
    said = {
        "settings": settings.model_dump(mode="json"),
        "place": [place.number, place.total, str(place.directory)],
    }
    return json.dumps(said).encode() + b"\n"


def read_order(line: bytes) -> tuple[Settings, Place]:
    """What `order` said."""
    said = json.loads(line)
    number, total, directory = said["place"]
    return Settings(**said["settings"]), Place(number, total, Path(directory))


class Supervisor:
    """`start`, then `drain` or `stop`; `ended` is set, with `code`, if it cannot go on."""

    def __init__(self, settings: Settings, exits_fatal: tuple[int, ...]) -> None:
        self._settings = settings
        self._exits_fatal = exits_fatal
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._ready: dict[int, asyncio.Event] = {
            index: asyncio.Event() for index in range(settings.workers)
        }
        self._serving: set[int] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.ended = asyncio.Event()
        self.code = 0
        self.admin = ""
        self._admin: AdminServer | None = None

    async def start(self) -> str:
        """Starts the workers; the address, once all are ready. Raises DomainError, OSError."""
        assert self._settings.data is not None  # the settings were checked
        self._lease = Lease(self._settings.data)
        try:
            listening.check_free(self._settings.listen)
        except OSError:
            self._lease.close()
            raise
        self._reserved = _reserve(self._settings.listen)
        host = self._settings.listen.rpartition(":")[0]
        address = f"{host}:{self._reserved.getsockname()[1]}"
        self._settings = self._settings.model_copy(update={"listen": address})
        self._directory = tempfile.TemporaryDirectory(prefix="resultd-")
        self._tasks = [asyncio.create_task(self._keep(index)) for index in self._ready]
        try:
            await asyncio.wait_for(self._all_ready(), READY_S)
        except asyncio.TimeoutError:
            log.error("workers not ready", after_s=READY_S)
        if self._unready() or self.ended.is_set():
            await self.stop()
            raise OSError("The workers did not become ready: the lines above say why.")
        if self._settings.admin:
            try:
                await self._start_admin()
            except OSError:
                await self.stop()
                raise
        return address

    async def _start_admin(self) -> None:
        import resultd_server.metrics  # noqa: F401  loaded only where it is asked for

        self._admin = AdminServer(
            {"/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz}
        )
        self.admin = await self._admin.start(self._settings.admin)

    async def _ask(self, target: str) -> dict[int, Answer | None]:
        """What every worker says; None for one that does not answer."""
        answers = await asyncio.gather(*(self._ask_one(index, target) for index in self._ready))
        return dict(zip(self._ready, answers, strict=True))

    async def _ask_one(self, index: int, target: str) -> Answer | None:
        where = self._place(index).admin.removeprefix(listening.UNIX)
        try:
            return await fetch(Path(where), target)
        except (OSError, asyncio.TimeoutError):
            return None

    async def _metrics(self) -> Answer:
        from resultd_server import metrics  # there since `_start_admin`

        answers = await self._ask("/metrics")
        pages = {index: answer and answer.body for index, answer in answers.items()}
        return Answer(metrics.merged(pages), content_type=metrics.CONTENT_TYPE)

    async def _livez(self) -> Answer:
        # A worker that died is started again, which is the supervisor's business; one that
        # runs and does not answer takes its share of the calls with it.
        answers = await self._ask("/livez")
        stuck = [index for index in self._serving if not _good(answers[index])]
        return verdict(f"worker {stuck[0]} does not answer" if stuck else "")

    async def _readyz(self) -> Answer:
        if self._stops():
            return verdict("draining")
        answers = await self._ask("/readyz")
        return verdict("" if any(map(_good, answers.values())) else "no worker is ready")

    def _place(self, index: int) -> Place:
        return Place(index, self._settings.workers, Path(self._directory.name))

    def _unready(self) -> list[int]:
        return [index for index, ready in self._ready.items() if not ready.is_set()]

    async def _all_ready(self) -> None:
        """Until every worker was ready once, or one of them cannot be."""
        ended = asyncio.create_task(self.ended.wait())
        ready = [asyncio.create_task(event.wait()) for event in self._ready.values()]
        try:
            while self._unready() and not self.ended.is_set():
                waiting = {ended, *(task for task in ready if not task.done())}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, *ready):
                task.cancel()

    async def _keep(self, index: int) -> None:
        """Runs one worker, again and again."""
        pause_s = AGAIN_S
        while not self._stops():
            began_s = time.monotonic()
            code = await self._run(index)
            if self._stops():
                return
            if code in self._exits_fatal:
                self.code = code
                self.ended.set()
                return
            log.error("worker died", index=index, code=code)
            if time.monotonic() - began_s > STEADY_S:
                pause_s = AGAIN_S
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, AGAIN_MAX_S)

    def _stops(self) -> bool:
        # Asked anew each time: it changes while a worker runs, which mypy does not see.
        return self._stopping

    async def _run(self, index: int) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "resultd_server.worker",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._running[index] = process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(OSError):  # it is dead already
                if self._stops():  # `drain` and `stop` did not see it
                    process.terminate()
                process.stdin.write(order(self._settings, self._place(index)))
                await process.stdin.drain()
            if (await process.stdout.readline()).startswith(b"resultd ready"):
                self._ready[index].set()
                self._serving.add(index)
                log.info("worker ready", index=index, pid=process.pid)
            return await process.wait()
        finally:
            del self._running[index]
            self._serving.discard(index)
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def drain(self) -> None:
        """Has the workers drain, each within `drain_s`, and waits for them."""
        self._stopping = True
        for process in list(self._running.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        await asyncio.wait(self._tasks, timeout=self._settings.drain_s + STOPPING_S)

    async def stop(self) -> None:
        """Ends the workers at once and gives the port and the directory back."""
        self._stopping = True
        for process in list(self._running.values()):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._admin is not None:
            await self._admin.close()
        self._reserved.close()
        self._lease.close()
        self._directory.cleanup()


def _good(answer: Answer | None) -> bool:
    return answer is not None and answer.status == HTTPStatus.OK


def _reserve(address: str) -> socket.socket:
    """A socket that keeps the port for the workers, and does not listen."""
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, _, _, _, where = found[0]
    reserved = socket.socket(family, socket.SOCK_STREAM)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(where)
    return reserved
