"""A server with a fault planted, to see that a checker bites; and one that can be looked into.

python -m tests.support.plants lost-wake-up --data DIR --listen 127.0.0.1:0
ServerProcess(tmp_path, program=plants.program("lost-wake-up"))

Without a fault ("none") the server is the real one. SIGUSR1 makes it append what it holds,
a JSON object a line, to the file that OBSERVATIONS names.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer

from resultd.v1 import result_service_pb2 as pb
from resultd.v1.stream_pb2 import Event
from resultd_server import app, limits, serve
from resultd_server.access.roles import Principal, Role
from resultd_server.core import tasks
from resultd_server.engine import checkpoint, hints, journal, journaled, lmdb
from resultd_server.interceptors import limits as admission
from resultd_server.ledger import keys, memberships, progress
from resultd_server.service import streams, validate
from tests.support.frames import events_of
from tests.support.memory import MIB

OBSERVATIONS = "TEST_OBSERVATIONS"
EVERY = 40
"""A planted fault shows once in so many times."""

_turn = itertools.count(1)


def program(fault: str = "none") -> tuple[str, ...]:
    """What to run instead of `resultd_server`."""
    assert fault in PLANTS, fault
    return "tests.support.plants", fault


def _sometimes() -> bool:
    return next(_turn) % EVERY == 0


def _put(where: object, name: str, instead: object) -> None:
    """Puts something else in the place of a function, class or constant there is."""
    assert hasattr(where, name), name
    setattr(where, name, instead)


def _lose_wake_ups() -> None:
    publish = hints.Hub.publish

    def forgetful(self: hints.Hub, changed: Iterable[Any], *rest: Any) -> None:
        publish(self, [change for change in changed if not _sometimes()], *rest)

    _put(hints.Hub, "publish", forgetful)


def _lose_all_wake_ups() -> None:
    def deaf(self: hints.Hub, changed: Iterable[Any], *rest: Any) -> None:
        """Nobody is told."""

    _put(hints.Hub, "publish", deaf)


def _read_before_subscribing() -> None:
    add, notice = tasks.TaskInterest.add, tasks.TaskInterest.notice
    late: dict[tasks.TaskInterest, set[str]] = {}

    def added(self: tasks.TaskInterest, task_ids: Iterable[str]) -> None:
        # What is there now is read at once; what comes until the subscription is missed.
        ids = list(task_ids)
        add(self, ids)
        late[self] = set(ids)
        asyncio.get_running_loop().call_later(0.05, lambda: late.pop(self, None))

    def noticed(self: tasks.TaskInterest, task_id: str) -> None:
        if task_id not in late.get(self, ()):
            notice(self, task_id)

    _put(tasks.TaskInterest, "add", added)
    _put(tasks.TaskInterest, "notice", noticed)


def _tamper(change: Callable[[list[Event]], list[Event]]) -> Callable[[], None]:
    def plant() -> None:
        step = progress.step

        def tampered(*arguments: Any) -> progress.Step:
            found = step(*arguments)
            if found.event_count > 2:
                changed = pb.IterateResponse(events=change(events_of(found.events)))
                return found._replace(events=changed.SerializeToString())
            return found

        _put(progress, "step", tampered)

    return plant


def _move_cursors() -> None:
    encode = progress.Cursor.encode

    def ahead(self: progress.Cursor) -> bytes:
        return encode(self._replace(position=self.position - 1) if self.position > 1 else self)

    _put(progress.Cursor, "encode", ahead)


def _repeat_tasks() -> None:
    next_events = tasks.TaskInterest.next_events

    async def twice(self: tasks.TaskInterest) -> list[bytes]:
        events = await next_events(self)
        return [*events, events[0]] if events and _sometimes() else events

    _put(tasks.TaskInterest, "next_events", twice)


def _leak(size_bytes: int) -> Callable[[], None]:
    def plant() -> None:
        kept: list[bytes] = []
        report = validate.report

        def hoarding(request: Any) -> Any:
            kept.append(os.urandom(size_bytes))
            return report(request)

        _put(validate, "report", hoarding)

    return plant


def _keep_cancelled_streams() -> None:
    close = hints.Subscription.close
    kept = []

    def never(self: hints.Subscription) -> None:
        kept.append((self, os.urandom(2_000)))
        if _sometimes():
            close(self)

    _put(hints.Subscription, "close", never)


SMALL_CHECKPOINT_BYTES = 1 * MIB


def _shorten_checkpoints() -> None:
    """No fault: they begin sooner, so that less has to be written for many of them."""
    _put(checkpoint, "BEGIN_BYTES", SMALL_CHECKPOINT_BYTES)


def _keep_read_transactions() -> None:
    """A stream's read transaction lives until its frame is taken."""
    _shorten_checkpoints()
    write = streams.Stream._write

    async def reading(self: streams.Stream, frame: bytes) -> None:
        engine: Any = self.source._engine
        with engine._env.begin():
            await write(self, frame)

    _put(streams.Stream, "_write", reading)


def _count_twice() -> None:
    count = memberships._count

    def counted(*member: Any) -> None:
        count(*member)
        if _sometimes():
            count(*member)

    _put(memberships, "_count", counted)


SHORT_QUEUE_BYTES = 32 * MIB


def _shorten_queue() -> None:
    """No fault: what is queued is full sooner, so that less has to be offered."""
    limits.WRITES_QUEUED_BYTES_MAX = SHORT_QUEUE_BYTES


def _refuse_for_ever() -> None:
    _shorten_queue()
    intercept = admission.Admission.intercept

    def one_way(self: admission.Admission, method: str, handler: Any) -> Any:
        inner = intercept(self, method, handler)

        async def wrapped(raw: Any, context: Any) -> Any:
            try:
                return await inner(raw, context)
            except Exception as error:
                if type(error).__name__ == "Overloaded":
                    self.closed = True
                raise

        return wrapped

    _put(admission.Admission, "intercept", one_way)


def _stop_the_clock() -> None:
    began_ns = time.time_ns()
    _put(app, "time", SimpleNamespace(time_ns=lambda: began_ns))


def _overlook_errors() -> None:
    write = journal.Journal._write

    def careless(self: journal.Journal, data: bytes, offset: int) -> None:
        with contextlib.suppress(OSError):
            write(self, data, offset)

    _put(journal.Journal, "_write", careless)


def _stay_full() -> None:
    why_full = journaled.JournaledEngine._why_full
    was: dict[journaled.JournaledEngine, Any] = {}

    async def stays(self: journaled.JournaledEngine, operations: Any) -> Any:
        why = await why_full(self, operations)
        return was.setdefault(self, why) if why or self in was else None

    _put(journaled.JournaledEngine, "_why_full", stays)


def _grow_always() -> None:
    """Deleting and forgetting are refused as what grows is."""
    write = journaled.JournaledEngine._write

    async def growing(self: journaled.JournaledEngine, operation: Any, **rest: Any) -> Any:
        return await write(self, operation, **{**rest, "grows": True})

    _put(journaled.JournaledEngine, "_write", growing)


def _let_everybody_in() -> None:
    _put(Principal, "role_in", lambda *_: Role.ADMIN)


def _share_members() -> None:
    """What a task of one tenant does counts in the groups of all."""
    memberships = keys.memberships

    def shared(namespace: keys.Namespace, kind: bytes, id_: str) -> bytes:
        return memberships(namespace._replace(prefix=bytes(8)), kind, id_)

    _put(keys, "memberships", shared)


def _share_hints() -> None:
    """Whoever waits for a task of that name is told again what it is."""
    add, publish = hints.Hub._add, hints.Hub.publish
    notice, counts = tasks.TaskInterest.notice, tasks.TaskInterest._counts
    hinted = set()

    def added(self: hints.Hub, _: str, *rest: Any) -> None:
        add(self, "", *rest)

    def published(self: hints.Hub, changed: Iterable[Any], *rest: Any) -> None:
        publish(self, [("", kind, id_) for _, kind, id_ in changed], *rest)

    def noticed(self: tasks.TaskInterest, task_id: str) -> None:
        hinted.add(self)
        notice(self, task_id)

    def counted(self: tasks.TaskInterest, *rest: Any) -> bool:
        return self in hinted or counts(self, *rest)

    _put(hints.Hub, "_add", added)
    _put(hints.Hub, "publish", published)
    _put(tasks.TaskInterest, "notice", noticed)
    _put(tasks.TaskInterest, "_counts", counted)


PLANTS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "lost-wake-up": _lose_wake_ups,
    "no-wake-ups": _lose_all_wake_ups,
    "read-before-subscribe": _read_before_subscribing,
    "skipped-entry": _tamper(lambda events: events[:1] + events[2:]),
    "repeated-entry": _tamper(lambda events: events[:2] + events[1:]),
    "swapped-entries": _tamper(lambda events: [events[1], events[0], *events[2:]]),
    "cursor-behind": _move_cursors,
    "repeated-task": _repeat_tasks,
    "leak": _leak(60_000),
    "leak-much": _leak(16_000_000),
    "kept-subscriptions": _keep_cancelled_streams,
    "short-checkpoints": _shorten_checkpoints,
    "long-reads": _keep_read_transactions,
    "double-count": _count_twice,
    "short-queue": _shorten_queue,
    "overloaded-for-ever": _refuse_for_ever,
    "stopped-clock": _stop_the_clock,
    "overlooked-errors": _overlook_errors,
    "full-for-ever": _stay_full,
    "full-for-all": _grow_always,
    "skipped-authorisation": _let_everybody_in,
    "member-without-namespace": _share_members,
    "hints-without-namespace": _share_hints,
}


def _observe(served: app.App, file: Path) -> None:
    engine = served.engine
    gc.collect()  # what is only waiting to be found is not held
    seen: dict[str, float] = {
        "tasks": len(asyncio.all_tasks()),
        "streams": served.streams.streams,
        "calls": served.admission.calls,
        "subscriptions": engine.hub.counts()[0],
        "keys": engine.hub.counts()[1],
        "descriptors": len([*Path("/proc/self/fd").iterdir()]),
        "objects": len(gc.get_objects()),
    }
    if isinstance(engine, lmdb.LmdbEngine):
        seen["readers"] = engine._env.info()["num_readers"]
    with file.open("a") as out:
        out.write(json.dumps(seen) + "\n")


class ObservedApp(app.App):
    """The server, which says what it holds when it is asked."""

    async def start(self) -> str:
        """Starts, and listens for the signal."""
        address = await super().start()
        file = os.environ.get(OBSERVATIONS)
        if file:
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGUSR1, _observe, self, Path(file)
            )
        return address


def main() -> None:
    """The server's command line, behind the name of a fault."""
    fault = sys.argv.pop(1)
    PLANTS[fault]()
    _put(serve, "App", ObservedApp)
    typer.run(serve.command)


if __name__ == "__main__":
    main()
