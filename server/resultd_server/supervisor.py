"""Several server processes over one store and one port: started, watched, started again.

The supervisor holds the data directory, the port and the sockets between the workers, and serves
nothing itself. A worker that dies is started again, and so is one that was ready once and cannot
start: what it lacks may come back, and its siblings serve meanwhile. One whose store failed takes
everybody along, as a lone server would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from http import HTTPStatus

import structlog

from resultd_server import listening, local_sockets
from resultd_server.admin import AdminServer, Answer, fetch, verdict
from resultd_server.app import Place
from resultd_server.config import Settings
from resultd_server.engine.lease import Lease
from resultd_server.errors import DomainError

READY_S = 60.0
"""What a worker has to become ready. And for so long one that cannot start is tried again though
none serves: after it, nobody believes that it is for a moment."""

AGAIN_S = 0.1
AGAIN_MAX_S = 5.0
STEADY_S = 30.0
"""A worker that lived so long is started again at once."""

EXIT_NOT_READY = 1
"""None of `exits_unable`, where 2 says that trying again is in vain."""

STOPPING_S = 5.0
"""What workers have to end beyond the time they have to drain."""

log = structlog.get_logger("resultd.server")


def order(settings: Settings, place: Place) -> bytes:
    """The line that starts a worker."""
    said = {
        "settings": settings.model_dump(mode="json"),
        "place": place,
    }
    return json.dumps(said).encode() + b"\n"


def read_order(line: bytes) -> tuple[Settings, Place]:
    """What `order` said."""
    said = json.loads(line)
    return Settings(**said["settings"]), Place(*said["place"])


class NotReady(Exception):
    """The workers did not become ready: says why, and with which `code` to end."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.code = code


class Supervisor:
    """`start`, then `drain` or `stop`; `ended` is set, with `code`, if it cannot go on.

    `exits_fatal`: a worker that ends so ends all. `exits_unable`: it could not start.
    """

    def __init__(
        self, settings: Settings, exits_fatal: tuple[int, ...], exits_unable: tuple[int, ...]
    ) -> None:
        self._settings = settings
        self._exits_fatal = exits_fatal
        self._exits_unable = exits_unable
        self._held = contextlib.ExitStack()
        self._name = local_sockets.new_name()
        self._doors: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._ready: dict[int, asyncio.Event] = {
            index: asyncio.Event() for index in range(settings.workers)
        }
        self._serving: set[int] = set()
        self._served_s = 0.0
        self._late: set[int] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self.ended = asyncio.Event()
        self.code = 0
        self.admin = ""
        self._admin: AdminServer | None = None

    async def start(self) -> str:
        """Starts the workers; the address, once all are ready.

        Raises DomainError, OSError, NotReady. Who cancels it calls `drain` or `stop`.
        """
        try:
            address = self._take_hold()
            for index in self._ready:
                task = asyncio.create_task(self._keep(index), name=f"worker-{index}")
                task.add_done_callback(self._kept)
                self._tasks.append(task)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._all_ready(), READY_S)
            if self.ended.is_set():
                raise NotReady("A worker cannot start: the lines above say why.", self.code)
            if self._unready():
                late = ", ".join(map(str, self._unready()))
                raise NotReady(f"Not ready after {READY_S:.0f} s: worker {late}.", EXIT_NOT_READY)
            if self._settings.admin:
                await self._start_admin()
        except (DomainError, OSError, NotReady):
            await self.stop()
            raise
        return address

    def _take_hold(self) -> str:
        """Takes what workers share; the address."""
        assert self._settings.data is not None  # the settings were checked
        self._held.callback(Lease(self._settings.data).close)
        listening.check_free(self._settings.listen)
        reserved = self._held.enter_context(_reserve(self._settings.listen))
        host = self._settings.listen.rpartition(":")[0]
        address = f"{host}:{reserved.getsockname()[1]}"
        self._settings = self._settings.model_copy(update={"listen": address})
        for index in self._ready:
            hints = local_sockets.listen(local_sockets.hints_name(self._name, index))
            self._held.callback(hints.close)
            admin = local_sockets.listen(local_sockets.admin_name(self._name, index))
            self._held.callback(admin.close)
            self._doors[index] = hints, admin
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
        if index not in self._serving:
            return None  # one could connect, to whom it will be
        try:
            return await fetch(local_sockets.admin_name(self._name, index), target)
        except (OSError, asyncio.TimeoutError):
            return None

    async def _metrics(self) -> Answer:
        from resultd_server import metrics  # there since `_start_admin`

        answers = await self._ask("/metrics")
        pages = {index: answer and answer.body for index, answer in answers.items()}
        return Answer(metrics.merged(pages), content_type=metrics.CONTENT_TYPE)

    async def _livez(self) -> Answer:
        # A worker that died is started again, which is the supervisor's business, and to start
        # everything again helps none that says why it cannot start. One that runs and does not
        # answer takes its share of the calls with it.
        answers = await self._ask("/livez")
        for index, answer in answers.items():
            if index in self._serving and not _good(answer):
                return verdict(f"worker {index} does not answer")
            if index in self._late:
                return verdict(f"worker {index} does not become ready")
        return verdict("" if self._serving else "no worker serves")

    async def _readyz(self) -> Answer:
        if self._stops():
            return verdict("draining")
        answers = await self._ask("/readyz")
        return verdict("" if any(map(_good, answers.values())) else "no worker is ready")

    def _place(self, index: int) -> Place:
        hints, admin = self._doors[index]
        total = self._settings.workers
        return Place(index, total, self._name, hints.fileno(), admin.fileno())

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
            if code is not None:
                if self._ends_all(index, code):
                    self.code = code
                    self.ended.set()
                    return
                log.error("worker died", index=index, code=code)
            if time.monotonic() - began_s > STEADY_S:
                pause_s = AGAIN_S
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            pause_s = min(pause_s * 2, AGAIN_MAX_S)

    def _kept(self, task: asyncio.Task[None]) -> None:
        """Without somebody who starts its workers again a server would fade away."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.code = EXIT_NOT_READY
            self.ended.set()
            log.critical("worker no longer watched", task=task.get_name(), error=repr(error))

    def _ends_all(self, index: int, code: int) -> bool:
        if code in self._exits_fatal:
            return True
        if code not in self._exits_unable:
            return False
        # What was good enough once may be so again: others serve meanwhile, or did just now.
        lately = bool(self._serving) or time.monotonic() - self._served_s < READY_S
        return not (self._ready[index].is_set() and lately)

    def _stops(self) -> bool:
        # Asked anew each time: it changes while a worker runs, which mypy does not see.
        return self._stopping.is_set()

    async def _run(self, index: int) -> int | None:
        """Runs a worker to its end: its exit code, None if there is no process for it."""
        place = self._place(index)
        try:
            # In a session of its own: a terminal's Ctrl-C is for the supervisor, which tells it.
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "resultd_server.worker",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                pass_fds=(place.hints, place.admin), start_new_session=True,
            )  # fmt: skip
        except OSError as error:  # out of memory, processes or descriptors
            log.error("worker not started", index=index, why=str(error))
            return None
        self._running[index] = process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(OSError):  # it is dead already
                if self._stops():  # `drain` and `stop` did not see it
                    process.terminate()
                process.stdin.write(order(self._settings, place))
                await process.stdin.drain()
            try:
                line = await asyncio.wait_for(process.stdout.readline(), READY_S)
            except asyncio.TimeoutError:
                self._late.add(index)
                log.error("worker not ready", index=index, after_s=READY_S)
                process.kill()
                return await process.wait()
            self._late.discard(index)
            if line.startswith(b"resultd ready"):
                self._ready[index].set()
                self._serving.add(index)
                log.info("worker ready", index=index, pid=process.pid)
            return await process.wait()
        finally:
            del self._running[index]
            if index in self._serving:
                self._serving.discard(index)
                self._served_s = time.monotonic()
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def drain(self) -> None:
        """Has the workers drain, each within `drain_s`, and waits for them."""
        self._stopping.set()
        for process in list(self._running.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.drain_s + STOPPING_S)

    async def stop(self) -> None:
        """Ends the workers at once and gives the port and the directory back."""
        self._stopping.set()
        for process in list(self._running.values()):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._admin is not None:
            await self._admin.close()
        self._held.close()


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
    try:
        reserved.bind(where)
    except OSError:
        reserved.close()
        raise
    return reserved
