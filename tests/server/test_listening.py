"""Whether an address is free: said before anything is opened."""

from __future__ import annotations

import resource
import socket
from pathlib import Path

import pytest
import structlog

from resultd_server import limits, listening
from tests.support.addresses import why_no_ipv6


def test_a_free_address_passes(tmp_path: Path) -> None:
    """A free port, port 0, and a unix path nobody serves are free."""
    listening.check_free("127.0.0.1:0")
    listening.check_free("localhost:0")
    listening.check_free(f"unix:{tmp_path}/s")


def test_an_ipv6_address_passes() -> None:
    """Brackets around an IPv6 address are understood."""
    if missing := why_no_ipv6():
        pytest.skip(missing)
    listening.check_free("[::1]:0")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_in_use_is_refused(host: str) -> None:
    """A port on which somebody listens is refused, with two ways out."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"{host}:{other.getsockname()[1]}"
        with pytest.raises(
            OSError, match="that listens there, or name another address with --listen"
        ):
            listening.check_free(address)


def test_a_name_is_free_where_one_of_its_addresses_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name passes whose IPv6 address this host lacks, as gRPC listens on the others."""
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    listening.check_free("localhost:0")


def test_a_port_that_was_just_left_is_free() -> None:
    """Connections that linger from the last server do not keep the next one out."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
        server.bind(("127.0.0.1", 0))
        server.listen()
        where = server.getsockname()
        with socket.create_connection(where):
            accepted, _ = server.accept()
            accepted.close()  # the server's side first: it is the one that lingers
    listening.check_free(f"127.0.0.1:{where[1]}")


def test_a_unix_socket_somebody_serves_is_refused(tmp_path: Path) -> None:
    """A living server keeps its unix socket; what a dead one left behind may be taken."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="Address already in use: stop the server"):
            listening.check_free(f"unix:{path}")
    assert path.exists()
    listening.check_free(f"unix:{path}")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("192.0.2.1:0", "Cannot assign requested address: name another address"),
        ("no.such.host.invalid:0", "Name an address"),
        (f"{'x' * 64}.invalid:0", "no host is called so"),
        ("no..host:0", "no host is called so"),
        ("unix:/no/such/place/s", "/no/such/place is not a directory"),
        (f"unix:/tmp/{'x' * 200}", "name another address"),
    ],
)
def test_an_address_that_cannot_be_is_refused(address: str, why: str) -> None:
    """The sentence names the address, the reason and what to do."""
    with pytest.raises(OSError, match=f"Cannot listen on {address}: ") as caught:
        listening.check_free(address)
    assert why in str(caught.value)


def test_connections_leave_the_store_its_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is what was wanted, or what the system grants less what the server needs."""
    granted: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: granted.append(pair))
    warned: list[tuple[int, int]] = []
    for soft, hard, wanted, found in (
        (20_000, 20_000, 10_000, 10_000),
        (1_024, 4_096, 10_000, 4_096 - limits.DESCRIPTORS_KEPT),
        (1_024, resource.RLIM_INFINITY, 10_000, 10_000),
        (100, 100, 10_000, 1),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, pair=(soft, hard): pair)
        with structlog.testing.capture_logs() as lines:
            assert listening.connections_max(wanted) == found
        warned += [(line["connections"], line["open_files"]) for line in lines]
    assert granted == [
        (4_096, 4_096),
        (10_000 + limits.DESCRIPTORS_KEPT, resource.RLIM_INFINITY),
        (100, 100),
    ]
    # Whoever is one too many is closed without a word: that there are few is said at the start.
    assert warned == [(4_096 - limits.DESCRIPTORS_KEPT, 4_096), (1, 100)]
