"""The composition root: start, drain, stop, and a store that fails."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2
from resultd_server import app, heap, limits, serve
from resultd_server.app import App
from resultd_server.config import Settings
from resultd_server.engine.base import Swept
from resultd_server.engine.lmdb import LmdbEngine
from resultd_server.engine.memory import MemoryEngine
from resultd_server.errors import Overloaded, StoreFailed
from resultd_server.service.health import NOT_SERVING, SERVING
from tests.support import reports
from tests.support.access import AuthFile, with_token
from tests.support.frames import Frames
from tests.support.http import get_soon
from tests.support.in_process import Served, serving, until
from tests.support.refusals import taken_apart


def settings(**said: Any) -> Settings:
    """Settings of a small server."""
    return Settings(**{"engine": "memory", "listen": "127.0.0.1:0", **said})


def test_the_engine_is_the_one_the_settings_name(tmp_path: Path) -> None:
    """`memory` and `lmdb` each make their engine."""
    assert isinstance(app.make_engine(settings(), app.wall_clock_ms), MemoryEngine)
    on_disk = settings(engine="lmdb", data=tmp_path)
    assert isinstance(app.make_engine(on_disk, app.wall_clock_ms), LmdbEngine)


async def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    """A stopped server frees its directory, and the next one has all that was stored."""
    for number in range(3):
        async with serving(engine="lmdb", data=tmp_path) as served:
            await served.results.StoreResult(reports.success(f"t{number}"))
            request = pb.BatchGetResultsRequest(task_ids=[f"t{n}" for n in range(number + 1)])
            got = await served.results.BatchGetResults(request)
            assert {meta.existence for meta in got.metas} == {state_pb2.EXISTENCE_KNOWN}


async def test_health_follows_the_drain() -> None:
    """SERVING before, NOT_SERVING as soon as the server drains, to Check and Watch alike."""
    async with serving() as served:
        stub: Any = health_pb2_grpc.HealthStub(served.channel)
        watch = Frames(stub.Watch(health_pb2.HealthCheckRequest()))
        assert (await watch.next()).status == SERVING
        blocked = served.results.Watch()
        await until(lambda: served.app.streams.streams == 1)
        draining = asyncio.create_task(served.app.drain())
        assert (await watch.next()).status == NOT_SERVING
        blocked.cancel()
        await draining


async def test_health_says_that_the_store_has_failed() -> None:
    """A server that ends because its store has failed says NOT_SERVING before it goes."""
    async with serving() as served:
        stub: Any = health_pb2_grpc.HealthStub(served.channel)
        watch = Frames(stub.Watch(health_pb2.HealthCheckRequest()))
        assert (await watch.next()).status == SERVING
        assert served.app.engine.on_failure is not None
        served.app.engine.on_failure(OSError("Input/output error"))
        stopping = asyncio.create_task(served.app.stop())
        assert (await watch.next()).status == NOT_SERVING
        await stopping


async def test_without_reflection_there_is_none() -> None:
    """Reflection can be switched off; the services stay."""
    async with serving(reflection=False) as served:
        path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        call: Any = served.channel.stream_stream(path)()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert (await served.results.GetResult(pb.GetResultRequest(task_id="t"))).meta.task_id


async def test_a_drain_lets_a_call_finish_and_gives_up_after_drain_s() -> None:
    """A drain waits for calls under way, for `drain_s` and no longer."""
    async with serving(drain_s=0.3) as served:
        gate = asyncio.Event()
        original = served.app.engine.get

        async def slow(*args: Any, **how: Any) -> Any:
            await gate.wait()
            return await original(*args, **how)

        served.app.engine.get = slow  # type: ignore[method-assign]  # a slow disk
        first = asyncio.ensure_future(served.results.GetResult(pb.GetResultRequest(task_id="t")))
        await until(lambda: served.app.admission.calls == 1)
        draining = asyncio.create_task(served.app.drain())
        await until(lambda: served.app.admission.closed)
        gate.set()
        assert (await first).meta.task_id == "t"
        await draining
    async with serving(drain_s=0.1) as served:
        served.app.engine.get = lambda *_, **__: asyncio.Event().wait()  # type: ignore[assignment,method-assign]  # never
        stuck = asyncio.ensure_future(served.results.GetResult(pb.GetResultRequest(task_id="t")))
        await until(lambda: served.app.admission.calls == 1)
        await served.app.drain()
        assert served.app.admission.calls == 1
        stuck.cancel()


async def test_a_port_gRPC_cannot_have_frees_the_store(tmp_path: Path) -> None:  # noqa: N802  its name
    """If listening fails after all, the directory is free for the next try."""
    first = App(settings(engine="lmdb", data=tmp_path))

    def refuse(_: str) -> int:
        raise RuntimeError("Failed to bind")

    server = grpc.aio.server
    with pytest.MonkeyPatch.context() as patched:

        def broken(*args: Any, **how: Any) -> Any:
            made = server(*args, **how)
            patched.setattr(made, "add_insecure_port", refuse)
            return made

        patched.setattr(grpc.aio, "server", broken)
        with pytest.raises(OSError, match="Cannot listen on"):
            await first.start()
    async with serving(engine="lmdb", data=tmp_path):
        pass


# A store that fails.


def failing(served_app: App) -> None:
    """Makes the store fail at the next write."""

    async def put(*_: Any, **__: Any) -> Any:
        assert served_app.engine.on_failure is not None
        served_app.engine.on_failure(OSError("Input/output error"))
        raise StoreFailed("The store failed and the server is stopping: try another.")

    served_app.engine.put = put  # type: ignore[method-assign]  # a broken disk


async def test_a_store_that_fails_is_told_and_noticed(served: Served) -> None:
    """The caller gets UNAVAILABLE and STORE_FAILED, the server knows that it is to end."""
    failing(served.app)
    with structlog.testing.capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.results.StoreResult(reports.success("t"))
    refusal = taken_apart(caught.value)
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "STORE_FAILED")
    assert served.app.failed.is_set()
    assert "store failed" in [line["event"] for line in lines]


async def test_a_store_that_fails_is_noticed_before_it_is_logged(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of the line: the server is to end by then."""
    seen: list[bool] = []

    class Log:
        def critical(self, *_: object, **__: object) -> None:
            """A line."""
            seen.append(served.app.failed.is_set())

    monkeypatch.setattr("resultd_server.app.log", Log())
    for notice in (served.app.engine.on_failure, served.app._on_deaf):
        assert notice is not None
        notice(OSError("Input/output error"))
        served.app.failed.clear()
    assert seen == [True, True]


@pytest.mark.parametrize("draining", [False, True])
async def test_a_store_that_fails_ends_the_server_with_3(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], draining: bool
) -> None:
    """The exit code is 3 when the store fails, even in the middle of a drain."""
    made: list[App] = []

    def remember(*args: Any, **how: Any) -> App:
        made.append(App(*args, **how))
        return made[-1]

    monkeypatch.setattr(serve, "App", remember)
    monkeypatch.setattr(heap, "settle", lambda: None)  # it is for the whole process
    running = asyncio.create_task(serve.run(settings(drain_s=600)))
    printed: list[str] = []

    def ready() -> re.Match[str] | None:
        printed.append(capfd.readouterr().out)
        return re.search(r"resultd ready on (\S+)\n", "".join(printed))

    await until(lambda: ready() is not None)
    found = ready()
    assert found is not None
    address = found[1]
    async with grpc.aio.insecure_channel(address) as channel:
        served = Served(made[0], address, channel)
        if draining:
            gate = asyncio.Event()
            made[0].engine.get = lambda *_, **__: gate.wait()  # type: ignore[assignment,method-assign]  # slow
            slow = served.results.GetResult(pb.GetResultRequest(task_id="t"))
            stuck = asyncio.ensure_future(slow)
            await until(lambda: made[0].admission.calls == 1)
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: made[0].admission.closed)
            assert made[0].engine.on_failure is not None
            made[0].engine.on_failure(OSError("Input/output error"))
            assert await running == 3
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await stuck
        else:
            failing(made[0])
            with pytest.raises(grpc.aio.AioRpcError):
                await served.results.StoreResult(reports.success("t"))
            assert await running == 3


# What goes on in the background.


async def test_the_sweeper_outlives_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A store that refuses to be swept for a while is swept again; both are logged."""
    monkeypatch.setattr("resultd_server.core.sweeper.EVERY_S", 0.01)
    swept: list[int] = []

    async def sweep(_: int) -> Swept:
        swept.append(1)
        if len(swept) == 1:
            raise Overloaded("Too many writes are queued: try again later.")
        return Swept(steps=3, expired=2, expired_incomplete=1)

    with structlog.testing.capture_logs() as lines:
        monkeypatch.setattr(MemoryEngine, "sweep", lambda _, budget: sweep(budget))
        async with serving():
            await until(lambda: len(swept) > 3)
    events = [line["event"] for line in lines]
    assert events[0] == "not swept"
    assert "groups expired incomplete" in events


WORK = {
    "watch-stalled": "resultd_server.service.streams.Streams.watch_stalled",
    "heap": "resultd_server.heap.run",
    "pressure": "resultd_server.pressure.Pressure.run",
    "watch-requests": "resultd_server.acceptance.Acceptance.watch",
    "watch-writer": "resultd_server.app.App._watch_writer",
    "follow-auth-file": "resultd_server.access.reload.follow",
    "watch-credentials": "resultd_server.interceptors.auth.Gate.watch",
    "sweeper": "resultd_server.core.sweeper.run",
}


@pytest.mark.parametrize("name", WORK)
async def test_a_background_task_that_breaks_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A bug in what runs in the background is told, and the server goes on with it and with
    calls.
    """
    runs: list[str] = []

    async def broken(*_: object) -> None:
        runs.append(name)
        if len(runs) == 1:
            raise ZeroDivisionError

    monkeypatch.setattr(WORK[name], broken)
    monkeypatch.setattr("resultd_server.background.AGAIN_S", 0.01)
    file = AuthFile(tmp_path)
    token = file.add("a", everywhere="reader")
    with structlog.testing.capture_logs() as lines:
        async with serving(auth_file=file.path) as served:
            await until(lambda: len(runs) == 2)
            read = pb.GetResultRequest(task_id="t")
            await served.results.GetResult(read, metadata=with_token(token))
            assert set(served.app.background.broken) == set(WORK)
            assert served.app.background.broken[name] == 1
    [line] = lines
    assert (line["event"], line["task"]) == ("background task broke", name)


async def test_a_writer_that_was_stuck_when_its_watch_broke_is_said_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever watches after a break knows what was said before: health does not stay as it was."""
    monkeypatch.setattr(limits, "WRITER_LOOK_S", 0.01)
    monkeypatch.setattr("resultd_server.background.AGAIN_S", 0.01)
    stuck_s: list[float] = [limits.WRITER_STUCK_S + 1]

    def writing_s() -> float:
        if not stuck_s:
            stuck_s.append(0.0)
            raise ZeroDivisionError
        return stuck_s[0]

    with structlog.testing.capture_logs() as lines:
        async with serving() as served:
            monkeypatch.setattr(served.app.engine, "writing_s", writing_s)
            await until(lambda: len(lines) == 1)
            stuck_s.clear()
            await until(lambda: len(lines) == 3)
            stub: Any = health_pb2_grpc.HealthStub(served.channel)
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
    events = [line["event"] for line in lines]
    assert events == ["writer stuck", "background task broke", "writer goes on"]


async def test_ready_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draining, or with a failed store, it is not ready and lives on; a stuck writer ends both."""
    async with serving(admin="127.0.0.1:0") as served:
        address = served.app.admin
        assert await get_soon(address, "/readyz") == (200, "ok\n")
        served.app.failed.set()
        assert await get_soon(address, "/readyz") == (503, "the store failed\n")
        served.app.failed.clear()
        await served.app.drain()
        assert await get_soon(address, "/readyz") == (503, "draining\n")
        assert await get_soon(address, "/livez") == (200, "ok\n")
        stuck_s = limits.WRITER_STUCK_S + 1
        monkeypatch.setattr(served.app.engine, "writing_s", lambda: stuck_s)
        status, trouble = await get_soon(address, "/livez")
        assert (status, trouble) == (503, "one commit has taken 61 s so far\n")


async def test_an_admin_port_that_is_taken_frees_the_store(tmp_path: Path) -> None:
    """Without its admin port the server does not start, and the next one has the directory."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        admin = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="Address already in use"):
            await App(settings(engine="lmdb", data=tmp_path, admin=admin)).start()
    async with serving(engine="lmdb", data=tmp_path):
        assert (tmp_path / "data.mdb").exists()
