"""The composition root: engine, services, interceptors, health; start, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from importlib import metadata
from typing import NamedTuple

import structlog

from resultd.v1 import group_service_pb2, result_service_pb2, worker_service_pb2
from resultd_server import (
    acceptance,
    connections,
    heap,
    limits,
    listening,
    local_sockets,
    pressure,
)
from resultd_server.acceptance import Acceptance, Method
from resultd_server.admin import AdminServer, Answer, verdict
from resultd_server.background import Background, Work
from resultd_server.config import Settings
from resultd_server.core import sweeper
from resultd_server.engine.base import Clock, Engine, Swept
from resultd_server.engine.journaled import JournaledEngine
from resultd_server.engine.lmdb import LmdbEngine
from resultd_server.engine.peers import Peers
from resultd_server.entrance import Entrance
from resultd_server.errors import DomainError
from resultd_server.interceptors import Interceptor
from resultd_server.interceptors.access_log import log_calls
from resultd_server.interceptors.answers import AnswerBound
from resultd_server.interceptors.auth import Identify
from resultd_server.interceptors.errors import answer_errors
from resultd_server.interceptors.limits import Admission, CallBound, bound_bytes, bound_streams
from resultd_server.interceptors.metrics import Calls
from resultd_server.ledger.usage import Allowance
from resultd_server.pressure import Pressure
from resultd_server.service import health, registry
from resultd_server.service.groups import GroupService
from resultd_server.service.health import NOT_SERVING, SERVING
from resultd_server.service.quotas import Quotas
from resultd_server.service.results import ResultService, ServerInfo
from resultd_server.service.streams import WAKE_SECONDS, Streams
from resultd_server.service.workers import WorkerService
from resultd_server.tallies import Histogram

FEATURES = ("wait_for", "iterate", "watch", "groups", "claims", "revocations")

_LAST_WORD_S = 0.1
"""When the store has failed: for callers to hear of it, and whoever watches health."""

# so_reuseport is said besides: for anybody else a second server on the same port would take
# half the calls, silently.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", limits.REQUEST_BYTES_MAX),
    # Bit 0: identity and no other. gRPC inflates messages before anybody is asked, and no bound
    # counts what comes of it: 16 kB on the line are 16 MiB here (docs/decisions/0028).
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_concurrent_streams", limits.STREAMS_PER_CONNECTION),
    ("grpc.server_handshake_timeout_ms", int(limits.HANDSHAKE_TIMEOUT_S * 1000)),
    # Not said: `grpc.server.max_pending_requests`. From 1,000 calls on that nobody has looked at
    # gRPC ends some with CANCELLED, which clients try again. 20,000 were tried: nobody was
    # cancelled, and a bystander of rapid resets waited 25 s, with 580 MiB of calls in the queue.
    # A message nobody has asked for yet lies in gRPC, 64 KiB of it; with this probe the window
    # grows, and 3,000 batches of 500 kB at once took 1,287 MiB instead of 594.
    ("grpc.http2.bdp_probe", 0),
    # Soft and hard alike: between them calls are refused at random. gRPC refuses what has as much.
    ("grpc.max_metadata_size", limits.METADATA_BYTES_MAX + 1),
    ("grpc.absolute_max_metadata_size", limits.METADATA_BYTES_MAX + 1),
    # Until a peer has acknowledged the limit gRPC does not hold it to it, and waits a minute.
    ("grpc.http2.settings_timeout", int(limits.KEEPALIVE_TIMEOUT_S * 1000)),
    # Clients behind NAT ping; by default the third ping ends the connection.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    # A peer that is gone without a word: its streams would wait for it for ever.
    ("grpc.keepalive_time_ms", int(limits.KEEPALIVE_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(limits.KEEPALIVE_TIMEOUT_S * 1000)),
    # Peers that connect and do nothing, or nearly nothing.
    ("grpc.max_connection_idle_ms", int(limits.CONNECTION_IDLE_S * 1000)),
    ("grpc.max_connection_age_ms", int(limits.CONNECTION_AGE_S * 1000)),
    ("grpc.max_connection_age_grace_ms", int(limits.CONNECTION_GRACE_S * 1000)),
)

log = structlog.get_logger("resultd.server")


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def make_engine(settings: Settings, clock: Clock, *, shared: bool = False) -> Engine:
    """The engine the settings name; `shared`: with other processes."""
    allowance = Allowance(settings.records_per_namespace, settings.bytes_per_namespace)
    if settings.engine == "memory":
        from resultd_server.engine.memory import MemoryEngine

        return MemoryEngine(clock, allowance=allowance)
    assert settings.data is not None  # the settings were checked
    if shared:
        return LmdbEngine(
            clock,
            settings.data,
            max_db_bytes=settings.max_db_bytes,
            allowance=allowance,
            shared=True,
        )
    return JournaledEngine(
        clock, settings.data, max_db_bytes=settings.max_db_bytes, allowance=allowance
    )


class Place(NamedTuple):
    """Which of several processes this is, and its sockets (`local_sockets`)."""

    number: int
    total: int
    name: str
    """What the sockets of them all are called by."""
    hints: int
    """The descriptor on which the others are listened to."""
    admin: int
    """And that for its supervisor's questions."""

    @property
    def names(self) -> list[str]:
        """Where each process tells the others what it changed."""
        return [local_sockets.hints_name(self.name, number) for number in range(self.total)]

    @property
    def sweeps(self) -> bool:
        """Whether this is the one that deletes what has expired."""
        return self.number == 0


class App:
    """A server. `start`, then `drain` and `stop`; `failed` is set when the store fails,
    or when calls can no longer be heard.

    With a `place` it is one of several over a store and a port.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock = wall_clock_ms,
        *,
        streams_max: int = limits.STREAMS_MAX,
        place: Place | None = None,
    ) -> None:
        self._settings = settings
        self._place = place
        self._clock = clock
        self._streams_max = streams_max
        self.engine = make_engine(settings, clock, shared=place is not None)
        self._peers: Peers | None = None
        quotas = Quotas(settings.streams_per_namespace, settings.waited_ids_per_namespace)
        self.streams = Streams(age_s=settings.stream_age_s, quotas=quotas)
        self.admission = Admission()
        processes = 1 if place is None else place.total
        self.pressure = Pressure(
            pressure.most_bytes(settings.memory_max_bytes, processes),
            lambda: self._acceptance.relieve(),
            lambda share: connections.close_share(self._address, share),
        )
        self.failed = asyncio.Event()
        self._entrance = Entrance(settings)
        self.swept = sweeper.Sweeps()
        self.calls: Calls | None = None
        self.admin = ""
        self._admin: AdminServer | None = None
        self._serving = False
        self._health = health.Health()
        self.background = Background()
        self._writer_stuck = False

    async def start(self) -> str:
        """Opens the store and listens; the address. Raises ConfigError, DomainError, OSError."""
        self._entrance.open()
        if self._place is None:
            listening.check_free(self._settings.listen)
        self.engine.on_failure = self._on_failure
        await self.engine.start()
        if self._place is not None:
            # Before anybody can call: what is changed here has to be heard everywhere.
            door = socket.socket(fileno=self._place.hints)
            self._peers = Peers(self.engine.hub, door, self._place.names, self._place.number)
            await self._peers.start()
        self._server = acceptance.make_server(
            [
                ("grpc.so_reuseport", int(self._place is not None)),
                ("grpc.max_allowed_incoming_connections", listening.connections_max()),
                *OPTIONS,
            ]
        )
        self._add_services()
        address = self._address = await self._listen()
        if self._settings.admin:
            await self._start_admin()
        await self._server.start()
        self._acceptance.start()
        self._set_health(SERVING)
        for name, work in self._work().items():
            self.background.begin(name, work)
        self._serving = True
        return address

    def _work(self) -> dict[str, Work]:
        """What runs beside the calls, by name."""
        found: dict[str, Work] = {
            "watch-stalled": self.streams.watch_stalled,
            "heap": heap.run,
            "pressure": self.pressure.run,
            "watch-requests": self._acceptance.watch,
            "watch-writer": self._watch_writer,
            **self._entrance.work(),
        }
        if self._place is None or self._place.sweeps:
            found["sweeper"] = lambda: sweeper.run(self.engine, self._on_swept, self._on_not_swept)
        return found

    async def _start_admin(self) -> None:
        # Loaded only where it is asked for: prometheus_client takes a tenth of a start. And not by
        # the first scrape, which would hold everybody up.
        import resultd_server.metrics  # noqa: F401  used by `_metrics`

        self._admin = AdminServer(
            {"/metrics": self._metrics, "/livez": self._livez, "/readyz": self._readyz}
        )
        try:
            if self._place is None:
                self.admin = await self._admin.start(self._settings.admin)
            else:
                await self._admin.start_between(socket.socket(fileno=self._place.admin))
        except OSError:
            await self._server.stop(None)
            await self.engine.close()
            raise

    async def _metrics(self) -> Answer:
        from resultd_server import metrics  # there since `_start_admin`

        assert self.calls is not None  # made with the admin port
        number = 0 if self._place is None else self._place.number
        page = metrics.exposition(
            metrics.Observed(
                self.engine, self.streams, self.calls, self.swept, self.pressure,
                metadata.version("resultd"), number, ready=not self._why_not_ready(),
                broken=self.background.broken, refused=self._entrance.refused,
                expires_s=self._entrance.expires_s,
            )
        )  # fmt: skip
        return Answer(page, content_type=metrics.CONTENT_TYPE)

    async def _livez(self) -> Answer:
        # That anything is answered shows that the event loop runs.
        return verdict(self._why_stuck())

    async def _readyz(self) -> Answer:
        return verdict(self._why_not_ready())

    def _why_not_ready(self) -> str:
        if self.failed.is_set():
            return "the store failed"
        if self.admission.closed:
            return "draining"
        return self._why_stuck() if self._serving else "starting"

    def _why_stuck(self) -> str:
        writing_s = self.engine.writing_s()
        stuck = writing_s > limits.WRITER_STUCK_S
        return f"one commit has taken {writing_s:.0f} s so far" if stuck else ""

    async def _listen(self) -> str:
        try:
            port = self._entrance.add_port(self._server)
        except RuntimeError as error:
            await self._server.stop(None)
            await self.engine.close()
            raise OSError(f"Cannot listen on {self._settings.listen}: {error}") from None
        if self._settings.listen.startswith(listening.UNIX):
            return self._settings.listen
        return f"{self._settings.listen.rpartition(':')[0]}:{port}"

    def _add_services(self) -> None:
        info = ServerInfo(
            metadata.version("resultd"), FEATURES, self._clock(), self._settings.quotas
        )
        of_all: list[Interceptor] = [answer_errors]
        if self._settings.log_level == "debug":
            of_all.append(log_calls)
        if self._settings.admin:
            self.calls = Calls(_streaming())
            self.streams.wake_seconds = Histogram(WAKE_SECONDS)
            of_all.append(self.calls.intercept)
        of_all.append(self.admission.intercept)
        door = self._entrance.door
        bound, answers = CallBound(), AnswerBound()
        self.engine.make_room = answers.make_room
        around = registry.Interceptors(
            of_all,
            of_unary=(bound.intercept, answers.intercept),
            of_streams=(bound_streams(self.streams, self._streams_max), door.hold),
            unary_full=lambda: self.pressure.short or bound.full(),
            streams_full=lambda: self.pressure.short,
        )
        results = ResultService(self.engine, self.streams, info)
        served = {
            result_service_pb2: ("ResultService", results),
            group_service_pb2: ("GroupService", GroupService(self.engine)),
            worker_service_pb2: ("WorkerService", WorkerService(self.engine, self.streams)),
        }
        names = []
        methods: list[Method] = []
        for module, (name, servicer) in served.items():
            service = module.DESCRIPTOR.services_by_name[name]
            names.append(service.full_name)
            methods += registry.methods(service, servicer, around, door.identify)
        self._names = [*names]
        if self._settings.channelz:
            from resultd_server.service import channelz

            names.append(channelz.SERVICE.full_name)
            methods += registry.methods(
                channelz.SERVICE,
                channelz.Channelz(),
                registry.Interceptors(of_all),  # for who looks why there is so much to do
                door.everywhere,
            )
        small = bound_bytes(limits.HEALTH_REQUEST_BYTES_MAX)
        for_probes = registry.Interceptors((answer_errors, small))
        methods += registry.methods(health.SERVICE, self._health, for_probes, _anybody)
        if self._settings.reflection:
            from resultd_server.service import reflection

            told = reflection.Reflection((*names, health.NAME, reflection.NAME))
            for_people = registry.Interceptors(
                (answer_errors,), streams_full=lambda: self.pressure.short
            )
            methods += registry.methods(reflection.SERVICE, told, for_people, _anybody)
        self._acceptance = Acceptance(self._server, methods, self._on_deaf)
        if self.calls is not None:
            self._server.add_generic_rpc_handlers((self.calls.unknown(),))

    def _set_health(self, status: int) -> None:
        for name in ("", *self._names):
            self._health.set(name, status)

    async def _watch_writer(self) -> None:
        """Has health say whether the writer is stuck."""
        while not self.admission.closed:
            await asyncio.sleep(limits.WRITER_LOOK_S)
            stuck = bool(self._why_stuck())
            if stuck != self._writer_stuck:
                self._writer_stuck = stuck
                log.warning("writer stuck" if stuck else "writer goes on")
                self._set_health(NOT_SERVING if stuck else SERVING)
        self._set_health(NOT_SERVING)  # a drain that began meanwhile has the last word

    def _on_failure(self, error: BaseException) -> None:
        self.failed.set()
        log.critical("store failed", error=str(error))

    def _on_deaf(self, error: BaseException) -> None:
        self.failed.set()
        log.critical("calls are no longer taken up", error=repr(error))

    def _on_swept(self, swept: Swept) -> None:
        self.swept.count(swept)
        if swept.expired_incomplete:
            log.warning("groups expired incomplete", count=swept.expired_incomplete)
        log.debug("swept", steps=swept.steps, expired=swept.expired)

    def _on_not_swept(self, refusal: DomainError) -> None:
        self.swept.refused += 1
        log.warning("not swept", reason=refusal.reason_name, why=refusal.sentence)

    async def drain(self) -> None:
        """Refuses new calls, ends streams with DRAINING, waits for calls under way.

        For `drain_s` at most. It goes on listening meanwhile, so that who calls is told.
        """
        self._set_health(NOT_SERVING)
        self.admission.closed = True
        self.streams.drain()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.admission.empty(), self._settings.drain_s)
            farewell_s = min(limits.FAREWELL_S, self._settings.drain_s)
            # Calls that gRPC has taken but not yet handed over would end as CANCELLED.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.admission.quiet(), farewell_s)
            # For answers on their way; health's own streams never end.
            await self._server.stop(farewell_s)

    async def stop(self) -> None:
        """Stops at once and closes the store."""
        await self.background.end()
        if self.failed.is_set():
            self._set_health(NOT_SERVING)
            await self._server.stop(_LAST_WORD_S)
        await self._server.stop(None)
        await self._acceptance.ended()
        await self.engine.close()  # what is under way is changed, and heard of
        if self._peers is not None:
            await self._peers.close()
        if self._admin is not None:
            await self._admin.close()


def _anybody(_: str) -> Identify:
    """For services that ask nobody who they are."""
    return lambda context: ""


def _streaming() -> set[str]:
    """The methods that answer with a stream."""
    return {
        method.full_name
        for module in (result_service_pb2, group_service_pb2, worker_service_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.server_streaming
    }
