"""Hearing of tasks that are to stop: what is resumed, what is told once."""

from __future__ import annotations

from collections.abc import Callable

from resultd.client import Client
from resultd.testing import Server
from tests.support.tcp_proxy import TcpProxy


def test_a_watch_resumes_and_repeats_nothing(
    server: Server, client: Client, new_id: Callable[[], str]
) -> None:
    """After a cut the server tells again what is asked for; the worker hears it once."""
    ids = [new_id() for _ in range(3)]
    client.store_results([(i, None, "STARTED") for i in ids])
    with TcpProxy(server.port) as proxy, Client(f"resultd://127.0.0.1:{proxy.port}") as behind:
        watch = behind.watch_revocations(ids)
        heard = iter(watch)
        for task_id in ids:
            client.revoke(task_id)
            assert next(heard).task_id == task_id
            proxy.cut()
        watch.close()
        assert list(heard) == []


def test_a_silent_watch_resumes(server: Server, client: Client, new_id: Callable[[], str]) -> None:
    """2.5 heartbeats later, on a new connection."""
    task_id = new_id()
    client.store_result(task_id, None, "STARTED")
    with (
        TcpProxy(server.port) as proxy,
        Client(f"resultd://127.0.0.1:{proxy.port}?heartbeat=1") as behind,
    ):
        behind.server_info()
        proxy.blackhole()
        proxy.heal()
        client.revoke(task_id)
        assert next(iter(behind.watch_revocations([task_id]))).task_id == task_id
