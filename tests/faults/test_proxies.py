"""Behind nginx, HAProxy and Envoy: quiet streams stay, cut ones resume, each result comes once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from resultd.client import Client
from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import stream_pb2
from tests.support.addresses import free_address
from tests.support.frames import Frames, seconds
from tests.support.proxies import KINDS, Proxy, certificate, why_not
from tests.support.server_process import ServerProcess
from tests.support.stubs import Stubs

IDLE_S = 3
QUIET_S = 4.0
"""Longer than a proxy bears silence."""

WAIT_S = 50.0

Setup = Callable[..., tuple[ServerProcess, Client, Client]]

pytestmark = pytest.mark.slow


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Setup]:
    """Starts a server and proxies in front of it; a client behind them, and one beside."""
    with contextlib.ExitStack() as stack:

        def start(
            *names: str, heartbeat: int = 1, tls: bool = False
        ) -> tuple[ServerProcess, Client, Client]:
            for name in names:
                missing = why_not(name)
                if missing is not None:
                    pytest.skip(missing)
            server = ServerProcess(tmp_path, "--drain-s", "2", listen=free_address())
            stack.enter_context(server)
            address, files = server.address, certificate(tmp_path) if tls else None
            for name in reversed(names):
                # TLS ends at the first one that a client meets.
                used = files if name == names[0] else None
                proxy = Proxy(name, tmp_path, address, idle_s=IDLE_S, tls=used)
                address = stack.enter_context(proxy).address
            port = address.rpartition(":")[2]
            url = f"resultd://127.0.0.1:{port}?heartbeat={heartbeat}"
            if files is not None:
                url = f"resultds://localhost:{port}?heartbeat={heartbeat}&ca={files}/server.crt"
            through = stack.enter_context(Client(url))
            return server, through, stack.enter_context(Client(f"resultd://{server.address}"))

        yield start


class Waits:
    """A result, a set and a group waited for at the same time, each in a thread."""

    def __init__(self, client: Client, ids: list[str]) -> None:
        self.values: dict[str, list[object]] = {"get": [], "set": [], "group": []}
        self.ids = ids
        client.group("g").create(ids)
        results = [client.AsyncResult(each) for each in ids]
        works: dict[str, Callable[[], list[object]]] = {
            "get": lambda: [results[0].get(timeout=WAIT_S)],
            "set": lambda: list(client.ResultSet(results).iterate(timeout=WAIT_S)),
            "group": lambda: list(client.group("g").iterate(timeout=WAIT_S)),
        }
        self._threads = [
            threading.Thread(target=self._run, args=pair, daemon=True) for pair in works.items()
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, name: str, work: Callable[[], list[object]]) -> None:
        self.values[name] = work()

    def check(self) -> None:
        """Everything came, once."""
        for thread in self._threads:
            thread.join(WAIT_S)
        everything = sorted(self.ids)
        assert self.values["get"] == [self.ids[0]]
        assert sorted(map(str, self.values["set"])) == everything
        assert sorted(map(str, self.values["group"])) == everything


def reported(client: Client, ids: list[str]) -> None:
    """Every task's value is its id."""
    client.store_results([(each, each) for each in ids])


@pytest.mark.parametrize("name", KINDS)
def test_streams_bear_silence_and_a_backend_that_dies(behind: Setup, name: str) -> None:
    """Quiet for longer than the proxy's 3 s, then killed in the middle: all comes, once."""
    server, through, beside = behind(name, tls=True)
    waits = Waits(through, [f"t{n}" for n in range(30)])
    time.sleep(QUIET_S)
    reported(beside, waits.ids[1:10])
    server.kill()
    server.start()
    reported(beside, [*waits.ids[10:], waits.ids[0]])
    waits.check()


@pytest.mark.parametrize("pair", [("nginx", "haproxy"), ("haproxy", "envoy")])
def test_two_proxies_in_a_row(behind: Setup, pair: tuple[str, str]) -> None:
    """The same behind two of them, the server ended in order this time."""
    server, through, beside = behind(*pair, tls=True)
    waits = Waits(through, [f"t{n}" for n in range(30)])
    time.sleep(QUIET_S)
    reported(beside, waits.ids[1:10])
    server.stop()
    server.start()
    reported(beside, [*waits.ids[10:], waits.ids[0]])
    waits.check()


@pytest.mark.parametrize("name", KINDS)
def test_a_stream_that_the_proxy_cuts_is_resumed(behind: Setup, name: str) -> None:
    """With a heartbeat slower than the proxy's patience streams are cut, and nothing is lost."""
    _, through, beside = behind(name, heartbeat=60)
    waits = Waits(through, [f"t{n}" for n in range(30)])
    time.sleep(QUIET_S)
    reported(beside, waits.ids)
    waits.check()


@pytest.mark.parametrize("name", KINDS)
async def test_messages_keep_a_stream_open_and_silence_does_not(name: str, tmp_path: Path) -> None:
    """Heartbeats of 1 s carry a stream through the proxy's 3 s; without them it is cut."""
    missing = why_not(name)
    if missing is not None:
        pytest.skip(missing)
    with (
        ServerProcess(tmp_path) as server,
        Proxy(name, tmp_path, server.address, idle_s=IDLE_S) as proxy,
    ):
        async with grpc.aio.insecure_channel(proxy.address) as channel:

            async def end_reason(heartbeat_s: int) -> int:
                call = Stubs(channel).results.WaitFor(
                    pb.WaitForRequest(
                        task_ids=["t"], heartbeat=seconds(heartbeat_s), timeout=seconds(6)
                    )
                )
                reason: int = (await Frames(call).rest())[-1].control.end_reason
                return reason

            quiet = asyncio.create_task(end_reason(60))
            assert await end_reason(1) == stream_pb2.END_REASON_TIMEOUT
            with pytest.raises(grpc.aio.AioRpcError):
                await quiet
