"""Networks and servers that fail: what waits goes on, and each result is seen once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resultd.client import Client
from resultd.errors import UnavailableError
from resultd.testing import Server
from tests.support.tcp_proxy import TcpProxy
from tests.support.timing import check_takes


@pytest.fixture
def proxied(server: Server) -> Iterator[tuple[TcpProxy, Client]]:
    """A client behind a proxy, with the shortest heartbeat there is."""
    with (
        TcpProxy(server.port) as proxy,
        Client(f"resultd://127.0.0.1:{proxy.port}?heartbeat=1&timeout=20") as behind,
    ):
        yield proxy, behind


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Do something in a thread; its outcome or error will stand in the list."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:  # noqa: BLE001 (the test shows it)
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def test_a_wait_on_a_blackholed_stream_resumes(
    proxied: tuple[TcpProxy, Client], client: Client, new_id: Callable[[], str]
) -> None:
    """A connection that swallows everything gives no end: 2.5 silent heartbeats are one."""
    proxy, behind = proxied
    task_id = new_id()
    thread, outcome = in_thread(lambda: behind.AsyncResult(task_id).get(timeout=30))
    until(lambda: behind.watcher().streaming)
    proxy.blackhole()
    proxy.heal()
    client.store_result(task_id, "through")
    began = time.monotonic()
    thread.join(20)
    assert outcome == ["through"]
    assert time.monotonic() - began < 12  # 2.5 s of silence, one attempt that gets no answer


def test_a_group_on_a_blackholed_stream_resumes(
    proxied: tuple[TcpProxy, Client], client: Client, new_id: Callable[[], str]
) -> None:
    """The same for Iterate, and no member comes twice."""
    proxy, behind = proxied
    ids = [new_id() for _ in range(20)]
    group_id = new_id()
    client.group(group_id).create(ids)
    client.store_results([(task_id, n) for n, task_id in enumerate(ids[:10])])
    values = behind.group(group_id).iterate(timeout=40)
    seen = [next(values) for _ in range(10)]
    proxy.blackhole()
    proxy.heal()
    client.store_results([(task_id, n) for n, task_id in enumerate(ids)][10:])
    seen += list(values)
    assert seen == list(range(20))


def test_a_wait_resumes_after_each_cut(
    proxied: tuple[TcpProxy, Client], client: Client, new_id: Callable[[], str]
) -> None:
    """Connections that are reset again and again only delay."""
    proxy, behind = proxied
    ids = [new_id() for _ in range(30)]
    thread, outcome = in_thread(
        lambda: list(behind.ResultSet([behind.AsyncResult(i) for i in ids]).iterate(timeout=40))
    )
    for number, task_id in enumerate(ids):
        if number % 10 == 5:
            until(lambda: behind.watcher().streaming)
            proxy.cut()
        client.store_result(task_id, number)
    thread.join(30)
    assert sorted(outcome[0]) == list(range(30))  # type: ignore[call-overload]  # a list


@pytest.mark.parametrize("query", ["timeout=20&attempt_timeout=0.3", "timeout=0.3"])
def test_a_silent_connection_is_replaced_after_a_report(
    server: Server, new_id: Callable[[], str], query: str
) -> None:
    """A report that got no answer in its attempt's time gives it up: there is a new one then."""
    with (
        TcpProxy(server.port) as proxy,
        Client(f"resultd://127.0.0.1:{proxy.port}?{query}") as behind,
    ):
        behind.server_info()
        proxy.blackhole()
        proxy.heal()
        with contextlib.suppress(UnavailableError):  # where there was time for one attempt
            behind.store_result(new_id(), 1)
        assert behind.store_result(new_id(), 2).disposition == "APPLIED"
        assert proxy.accepted == 2


def test_a_timeout_is_exact_while_nobody_answers(
    proxied: tuple[TcpProxy, Client], new_id: Callable[[], str]
) -> None:
    """A get(timeout=) behind a dead network raises TimeoutError on time."""
    proxy, behind = proxied
    behind.server_info()
    proxy.blackhole()

    def wait() -> None:
        with pytest.raises(TimeoutError):
            behind.AsyncResult(new_id()).get(timeout=0.6)

    check_takes(0.55, 0.8, wait)


@pytest.mark.slow
def test_waits_go_on_over_a_restart(tmp_path: Path, new_id: Callable[[], str]) -> None:
    """Results reported before, while and after a server is down reach who waits, each once."""
    with Server(tmp_path) as own, Client(own.url) as client:
        ids = [new_id() for _ in range(60)]
        group = client.GroupResult(new_id(), [client.AsyncResult(i) for i in ids]).save()
        a_set, set_values = in_thread(lambda: list(group.iterate(timeout=40)))
        a_group, group_values = in_thread(lambda: list(client.group(group.id).iterate(timeout=40)))
        fired: list[str] = []
        for result in group:
            client.AsyncResult(result.id).then(lambda r: fired.append(r.id))
        client.store_results([(task_id, n) for n, task_id in enumerate(ids[:20])])
        own.kill()
        own.start()
        client.store_results([(task_id, n) for n, task_id in enumerate(ids)][20:40])
        own.restart()
        client.store_results([(task_id, n) for n, task_id in enumerate(ids)][40:])
        a_set.join(40)
        a_group.join(40)
        until(lambda: len(fired) == 60)
        assert sorted(set_values[0]) == list(range(60))  # type: ignore[call-overload]  # a list
        assert sorted(group_values[0]) == list(range(60))  # type: ignore[call-overload]  # as above
        assert sorted(fired) == sorted(ids)


def test_a_server_that_is_not_there_is_said_after_the_timeout() -> None:
    """A call is tried again until the address's timeout, then UnavailableError."""
    with Client("resultd://127.0.0.1:9?timeout=0.5") as client:

        def call() -> None:
            with pytest.raises(UnavailableError):
                client.server_info()

        check_takes(0, 1.5, call)
        with pytest.raises(TimeoutError):
            client.AsyncResult("x").get(timeout=0.2)


def test_streams_are_closed_once_nobody_waits(client: Client, new_id: Callable[[], str]) -> None:
    """No stream and no thread that brings results is left a moment after the last wait."""
    ready = new_id()
    client.store_result(ready, 1)
    for _ in range(20):
        with pytest.raises(TimeoutError):
            client.AsyncResult(new_id()).get(timeout=0.01)
    left = client.ResultSet([client.AsyncResult(i) for i in (ready, new_id())]).iterate()
    assert next(left) == 1
    del left  # not closed: the generator's end has to do
    members = client.group(new_id()).create([ready, new_id()]).iterate()
    assert next(members) == 1
    del members
    until(lambda: not client.watcher().streaming and not ours(), seconds=3)


def ours() -> list[str]:
    """Names of our threads, without those that stay to make the main thread's calls."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("resultd-") and name != "resultd-call"]


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for a condition, and fail if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.005)
