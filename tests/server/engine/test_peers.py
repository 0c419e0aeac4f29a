"""Hints between processes: what one changes the others hear of, or that something was lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

import pytest
from structlog.testing import capture_logs

from resultd_server import local_sockets
from resultd_server.engine import peers as peers_module
from resultd_server.engine.hints import Hub, Subscription
from resultd_server.engine.peers import Peers
from resultd_server.ledger.unit import GROUP, TASK, Changed


class Doors:
    """What a supervisor holds: sockets that listen for as long as it lives."""

    def __init__(self, total: int) -> None:
        server = local_sockets.new_name()
        self.names = [local_sockets.hints_name(server, number) for number in range(total)]
        self.held = [local_sockets.listen(name) for name in self.names]


class Process:
    """One of several, as far as hints go."""

    def __init__(self, doors: Doors, number: int) -> None:
        self.hub = Hub()
        self.peers = Peers(self.hub, doors.held[number].dup(), doors.names, number)
        self.waiter: Subscription = self.hub.subscribe("n")
        self.waiter.add(TASK, ["a", "b"])

    async def hears(self) -> list[tuple[str, str]]:
        """What it is told of next."""
        assert await self.waiter.wait(5.0)
        return self.waiter.take()


@contextlib.contextmanager
def held_open(total: int) -> Iterator[Doors]:
    """Sockets for so many processes, closed afterwards."""
    made = Doors(total)
    yield made
    for door in made.held:
        door.close()


@pytest.fixture
def doors() -> Iterator[Doors]:
    """Sockets for three processes."""
    with held_open(3) as made:
        yield made


@pytest.fixture
def two() -> Iterator[Doors]:
    """Sockets for two processes."""
    with held_open(2) as made:
        yield made


@pytest.fixture
async def mesh(doors: Doors) -> AsyncIterator[list[Process]]:
    """Three processes that hear one another."""
    made = [Process(doors, number) for number in range(3)]
    await asyncio.gather(*(each.peers.start() for each in made))
    yield made
    await asyncio.gather(*(each.peers.close() for each in made))


async def until(condition: Callable[[], bool]) -> None:
    """Let others go on until something is so."""
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came about")


async def test_a_change_in_one_process_wakes_waiters_in_all(mesh: list[Process]) -> None:
    """What a process announces its own waiters hear, and everybody else's."""
    mesh[0].hub.announce([("n", TASK, "a")])
    assert [await each.hears() for each in mesh] == [[(TASK, "a")]] * 3


async def test_a_change_that_is_only_heard_of_goes_no_further(mesh: list[Process]) -> None:
    """Whoever hears of a change does not pass it on: it would go round for ever."""
    mesh[1].hub.announce([("n", TASK, "b")])
    await mesh[0].hears()
    await mesh[2].hears()
    assert not mesh[0].waiter.take()
    assert not mesh[2].waiter.take()


async def test_names_of_all_kinds_arrive_as_they_are(mesh: list[Process]) -> None:
    """Ids of up to 255 bytes, with anything in them but control characters, cross unchanged."""
    ids = ["x" * 255, "ключ", "with space", "a,b:c/d"]
    mesh[2].waiter.add(GROUP, ids)
    mesh[0].hub.announce([("n", GROUP, id_) for id_ in ids])
    heard: list[tuple[str, str]] = []
    while len(heard) < len(ids):
        heard += await mesh[2].hears()
    assert sorted(heard) == sorted((GROUP, id_) for id_ in ids)


async def test_many_changes_at_once_all_arrive(mesh: list[Process]) -> None:
    """A commit of 30,000 changes is heard of whole."""
    ids = [f"t{number}" for number in range(30_000)]
    mesh[1].waiter.add(TASK, ids)
    changed: list[Changed] = [("n", TASK, id_) for id_ in ids]
    mesh[0].hub.announce(changed)
    heard: set[tuple[str, str]] = set()
    while len(heard) < len(ids):
        heard |= set(await mesh[1].hears())
    assert heard == {(TASK, id_) for id_ in ids}


async def test_a_process_that_ends_is_a_loss_for_the_others(mesh: list[Process]) -> None:
    """When a process is gone, its last changes may be unheard: everything is read again."""
    await mesh[2].peers.close()
    assert sorted(await mesh[0].hears()) == [(TASK, "a"), (TASK, "b")]
    assert sorted(await mesh[1].hears()) == [(TASK, "a"), (TASK, "b")]


async def test_a_process_that_comes_back_is_heard_again(mesh: list[Process], doors: Doors) -> None:
    """A restarted process hears and is heard as soon as `start` has returned."""
    await mesh[2].peers.close()
    again = Process(doors, 2)
    await again.peers.start()
    for each in mesh[:2]:
        each.waiter.take()
    again.hub.announce([("n", TASK, "a")])
    assert (TASK, "a") in await mesh[0].hears()
    again.waiter.take()
    mesh[1].hub.announce([("n", TASK, "b")])
    assert (TASK, "b") in await again.hears()
    await again.peers.close()


async def test_nobody_starts_before_all_are_there(two: Doors) -> None:
    """`start` waits for the last process, so that nothing is changed unheard."""
    first, second = Process(two, 0), Process(two, 1)
    starting = asyncio.create_task(first.peers.start())
    connection = await local_sockets.connect(two.names[0])
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    writer.write((1).to_bytes(4, "big"))
    await reader.readexactly(4)  # it listens, and nobody listens to it under 1's name
    writer.close()
    assert not starting.done()
    await second.peers.start()
    await asyncio.wait_for(starting, 5)
    await first.peers.close()
    await second.peers.close()


async def test_a_slow_listener_is_told_of_a_loss(
    mesh: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that takes no more is told once that something was lost; nothing piles up."""
    listener = mesh[0].peers._listeners[1]
    listener.pause_writing()
    for _ in range(1_000):
        mesh[0].hub.announce([("n", TASK, "a")])
    assert await mesh[2].hears() == [(TASK, "a")]
    assert not mesh[1].waiter.take()
    listener.resume_writing()
    assert sorted(await mesh[1].hears()) == [(TASK, "a"), (TASK, "b")]


async def test_a_stranger_on_the_socket_does_no_harm(mesh: list[Process], doors: Doors) -> None:
    """Bytes that are no frame of ours end that connection only."""
    connection = await local_sockets.connect(doors.names[0])
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    writer.write(b"\xff" * 100)
    await writer.drain()
    writer.close()
    mesh[0].hub.announce([("n", TASK, "a")])
    assert await mesh[1].hears() == [(TASK, "a")]
    assert await reader.read() is not None


async def test_what_nobody_listened_to_is_a_loss(mesh: list[Process]) -> None:
    """What a process changes between the end of a connection and the next: read again."""
    mesh[0].peers._listeners[1].close()
    await mesh[1].hears()
    mesh[0].hub.announce([("n", TASK, "a")])  # 1 is on no list now
    assert 1 not in mesh[0].peers._listeners
    assert sorted(await mesh[1].hears()) == [(TASK, "a"), (TASK, "b")]


async def test_another_user_is_told_nothing(
    mesh: list[Process], doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who runs as somebody else is not listened to: the connection ends without a byte."""
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # now all others are strangers
    await asyncio.get_running_loop().sock_connect(connection, f"\0{doors.names[0]}")
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    writer.write((1).to_bytes(4, "big"))
    told = b""
    with contextlib.suppress(ConnectionResetError):
        told = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert told == b""


async def test_a_frame_beyond_the_bound_is_a_loss(two: Doors) -> None:
    """A length that no commit has is not allocated: the connection ends, as a loss."""

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\0" + (peers_module.FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
        await writer.drain()
        await reader.read()
        writer.close()

    process = Process(two, 0)
    liar = await asyncio.start_unix_server(lie, sock=two.held[1])
    starting = asyncio.create_task(process.peers.start())
    assert sorted(await process.hears()) == [(TASK, "a"), (TASK, "b")]
    starting.cancel()
    await process.peers.close()
    liar.close()


async def test_a_bug_in_who_hears_is_a_loss(
    mesh: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint that breaks its hearer is told, counts as lost, and those after it are heard."""
    publish = mesh[1].hub.publish

    def broken(changed: Iterable[Changed], committed_s: float = 0.0) -> None:
        monkeypatch.setattr(mesh[1].hub, "publish", publish)
        raise KeyError

    monkeypatch.setattr(mesh[1].hub, "publish", broken)
    with capture_logs() as logs:
        mesh[0].hub.announce([("n", TASK, "a")])
        assert sorted(await mesh[1].hears()) == [(TASK, "a"), (TASK, "b")]
        await until(lambda: 1 in mesh[0].peers._listeners and 0 in mesh[1].peers._heard)
    mesh[1].waiter.take()
    mesh[0].hub.announce([("n", TASK, "b")])
    assert (TASK, "b") in await mesh[1].hears()
    [line] = logs
    assert (line["event"], line["of"], line["log_level"]) == ("hints broke", 0, "critical")


async def test_when_a_change_was_committed_crosses_too(mesh: list[Process]) -> None:
    """A wake by another process's commit is timed from that commit."""
    mesh[1].waiter.add(TASK, ["a"])
    mesh[0].hub.announce([("n", TASK, "a")], 12.5)
    assert await mesh[1].hears() == [(TASK, "a")]
    assert mesh[1].waiter.committed_s == 12.5
