"""Endpoints: lazy, shared, closed by the last."""

from __future__ import annotations

import datetime
import threading
from pathlib import Path

import grpc
import pytest

from resultd import _channel, _unary, _url, aio
from resultd._effects import Call, Reconnect
from resultd.client import Client
from resultd.errors import ResultdError
from resultd.testing import Server
from resultd.v1 import result_service_pb2
from tests.support import addresses


def test_clients_of_one_address_share_an_endpoint(server: Server) -> None:
    """The last one to go closes it."""
    url = _url.parse(server.url + "/shared")
    one, two = _channel.acquire(url), _channel.acquire(_url.parse(server.url + "/shared"))
    assert one is two
    opened = [one._channel is not None]
    one.handle(Call("GetServerInfo", _info(), 5))
    for _ in range(2):
        opened.append(one._channel is not None)
        _channel.release(one)
    opened.append(one._channel is not None)
    assert opened == [False, True, True, False]
    fresh = _channel.acquire(url)
    assert fresh is not one
    _channel.release(fresh)


def test_tls_takes_certificates_from_files(tmp_path: Path) -> None:
    """One that is missing, or too large, is said before anything is sent."""
    (tmp_path / "ca.pem").write_text("not checked before the handshake")
    url = _url.parse(f"resultds://h?ca={tmp_path}/ca.pem&server_name=n&timeout=1")
    _channel.credentials(url)
    assert ("grpc.ssl_target_name_override", "n") in _channel.options(url)
    with (tmp_path / "large.pem").open("wb") as large:
        large.truncate(_channel.CERTIFICATES_BYTES_MAX + 1)
    with pytest.raises(OSError, match=r"File too large: .*large\.pem"):
        _channel.credentials(_url.parse(f"resultds://h?ca={tmp_path}/large.pem"))
    with pytest.raises(OSError, match="nix"), Client(f"resultds://h?ca={tmp_path}/nix") as client:
        client.server_info()


async def test_loopback_is_reached_without_the_environments_proxy(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would ask for its own loopback. All other hosts are, as gRPC does."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, f"http://{addresses.free_address()}")
    for name in ("no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    url = f"{server.url}/without-a-proxy?timeout=2"
    with Client(url) as client:
        assert client.server_info().engine
    async with aio.Client(url) as asynchronous:
        assert (await asynchronous.server_info()).engine
    direct = ("grpc.enable_http_proxy", 0)
    for host, here in [
        ("localhost", True),
        ("[::1]", True),
        ("127.1.2.3", True),
        ("127.example.org", False),
        ("10.0.0.1", False),
    ]:
        assert (direct in _channel.options(_url.parse(f"resultd://{host}"))) == here


def test_a_connection_is_given_up_once_however_many_complain(client: Client) -> None:
    """The second complaint is about a connection that is gone already."""
    client.server_info()
    endpoint = client._open()
    generation = endpoint._generation
    for _ in range(3):
        endpoint.handle(Reconnect(generation))
    assert endpoint._generation == generation + 1
    client.server_info()


def test_calls_under_way_survive_a_new_connection(client: Client) -> None:
    """They are made again on it."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            while not stop.is_set():
                client.server_info()
        except Exception as error:  # noqa: BLE001 (the test shows it)
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    endpoint = client._open()
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=0.5)
    while datetime.datetime.now(datetime.timezone.utc) < end:
        endpoint.handle(Reconnect(endpoint._generation))
        client.server_info()
    stop.set()
    for thread in threads:
        thread.join(20)
    assert errors == []


def test_a_call_that_grpc_does_not_end_is_given_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after its timeout, whatever has become of gRPC's thread."""
    waited: list[float] = []

    class Endless:
        def result(self, timeout: float) -> None:
            waited.append(timeout)
            raise grpc.FutureTimeoutError

        def cancel(self) -> None:
            """As a future can be."""

    monkeypatch.setattr(_unary.Unary, "future", lambda *_, **__: Endless())
    with pytest.raises(ResultdError) as raised:
        client._open().handle(Call("GetServerInfo", _info(), 5, patient=True))
    assert (raised.value.code, waited) == ("DEADLINE_EXCEEDED", [5 + _channel.LATE_MAX])


def _info() -> result_service_pb2.GetServerInfoRequest:
    return result_service_pb2.GetServerInfoRequest()
