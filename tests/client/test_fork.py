"""Forks, with real processes: a live channel and a live stream in the parent each time."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from resultd import _fork, _promise, _revocations
from resultd._stream import QueueMailbox
from resultd.client import Client
from resultd.testing import Server

ROUNDS = 20
# Seconds that a child has. It needs some 20 ms; one that hangs needs for ever.
CHILD_SECONDS = 10

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork on this platform")


def in_child(work: Callable[[], bool]) -> int:
    """Fork, and let the child do something; gives its pid."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(CHILD_SECONDS)  # a child that hangs dies of SIGALRM
        code = 3
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    """Wait for a child; negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def stores_and_reads(client: Client, task_id: str) -> bool:
    """What a child does."""
    stored = client.store_result(task_id, "child").disposition == "APPLIED"
    return stored and client.AsyncResult(task_id).get(timeout=5) == "child"


def test_children_of_a_process_with_channel_and_stream_work(
    client: Client, new_id: Callable[[], str]
) -> None:
    """20 of 20 children store and read, while the parent waits on a stream before and after."""
    waited = client.AsyncResult(new_id())
    heard = threading.Event()
    waited.then(lambda _: heard.set())
    codes = []
    for _ in range(ROUNDS):
        client.server_info()
        mine = new_id()
        codes.append(exit_code(in_child(partial(stores_and_reads, client, mine))))
        assert client.AsyncResult(mine).get(timeout=5) == "child"
    assert codes == [0] * ROUNDS
    client.store_result(waited.id, 1)
    assert heard.wait(5)


def test_a_wait_in_another_thread_survives_forks(client: Client, new_id: Callable[[], str]) -> None:
    """A get() that blocks while its process forks 20 times gets its result."""
    task_id = new_id()
    values: list[object] = []
    waiter = threading.Thread(
        target=lambda: values.append(client.AsyncResult(task_id).get(timeout=30)), daemon=True
    )
    waiter.start()
    codes = [
        exit_code(in_child(lambda: client.AsyncResult(task_id).state == "PENDING"))
        for _ in range(ROUNDS)
    ]
    client.store_result(task_id, 42)
    waiter.join(10)
    assert codes == [0] * ROUNDS
    assert values == [42]


def test_a_child_goes_on_with_an_iteration_of_its_parent(
    client: Client, new_id: Callable[[], str]
) -> None:
    """A half-read iterate() is good for the rest, on both sides of the fork."""
    ids = [new_id() for _ in range(4)]
    values = client.ResultSet([client.AsyncResult(i) for i in ids]).iterate(timeout=10)
    client.store_result(ids[0], 0)
    assert next(values) == 0

    def rest() -> bool:
        return sorted(values) == [1, 2, 3]

    pid = in_child(rest)
    time.sleep(0.2)  # lets the child begin to wait; it would also do without
    client.store_results([(task_id, n) for n, task_id in enumerate(ids)][1:])
    assert rest()
    assert exit_code(pid) == 0


def test_a_streamed_group_goes_on_after_forks(client: Client, new_id: Callable[[], str]) -> None:
    """An Iterate stream that is open at a fork is resumed by the parent, nothing twice."""
    ids = [new_id() for _ in range(10)]
    group = client.group(new_id()).create(ids)
    values = group.iterate(timeout=20)
    seen = []
    for number, task_id in enumerate(ids):
        client.store_result(task_id, number)
        seen.append(next(values))
        assert exit_code(in_child(lambda: client.server_info().engine != "")) == 0
    assert list(values) == []
    assert seen == list(range(10))


def test_calls_in_flight_in_other_threads_are_tried_again(
    client: Client, new_id: Callable[[], str]
) -> None:
    """Threads that store all the time while the process forks see no error and lose nothing."""
    stop = threading.Event()
    failures: list[BaseException] = []
    stored: list[str] = []
    prefix = new_id()

    def work(name: str) -> None:
        number = 0
        try:
            while not stop.is_set():
                client.store_result(f"{prefix}-{name}-{number}", number)
                stored.append(f"{prefix}-{name}-{number}")
                number += 1
        except Exception as error:  # noqa: BLE001 (whatever it is, the test shows it)
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    codes = [exit_code(in_child(lambda: client.server_info().engine != "")) for _ in range(ROUNDS)]
    stop.set()
    for thread in threads:
        thread.join(20)
    assert failures == []
    assert codes == [0] * ROUNDS
    assert client.ResultSet([client.AsyncResult(i) for i in stored]).successful()


@contextmanager
def held_by_another(lock: Any) -> Iterator[None]:
    """A lock, held by a thread that a child does not have."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(CHILD_SECONDS + 5)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(5)
        yield
    finally:
        done.set()
        thread.join(20)


def test_a_child_can_listen_though_another_thread_did_at_the_fork() -> None:
    """What it held then, in the midst of a `then()`, is nobody's in the child."""
    promise = _promise.Promise()

    def listens() -> bool:
        heard: list[object] = []
        promise.then(heard.append)
        promise(1)
        return heard == [1]

    with held_by_another(_promise._lock):
        assert exit_code(in_child(listens)) == 0
    assert listens()


def test_a_child_can_tell_what_it_runs_though_another_thread_did_at_the_fork() -> None:
    """And sends nothing on the parent's stream."""
    sent: list[object] = []
    revocations = _revocations.Revocations(["a"], 20.0, QueueMailbox())
    revocations._stream = SimpleNamespace(send=sent.append)

    def tells() -> bool:
        revocations.add(["b"])
        revocations.remove(["a"])
        return sent == []

    with held_by_another(revocations._lock):
        assert exit_code(in_child(tells)) == 0
    assert not tells()  # the parent goes on with it


FIRST_CALL = """
import os, signal, sys, threading, resultd
importing = threading.Event()
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "resultd._channel":
            importing.set()
            seen.wait(0.5)
sys.meta_path.insert(0, Slow())
seen = threading.Event()  # never set: an import that takes its time
client = resultd.Client({url!r})
values = []
waiter = threading.Thread(target=lambda: values.append(client.AsyncResult("first").get(timeout=20)))
waiter.start()
importing.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(10)
    os._exit(0 if client.AsyncResult("first").state == "PENDING" else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
client.store_result("first", 42)
waiter.join()
print(values)
"""


def test_a_fork_during_the_first_call_of_another_thread_waits_for_its_imports() -> None:
    """gRPC is imported by the first call; a child would wait for ever for who imports it."""
    with Server() as server:
        program = FIRST_CALL.format(url=server.url)
        quiet = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
        done = subprocess.run(quiet, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["0", "[42]"]


PROGRAM = """
import os, resultd
from resultd import _fork
_fork.REST_MAX = 20.0  # that they end is shown here, not how soon on a busy machine
counts = []
# Registered before the first channel, so run after resultd's hook: what it sees is what forks.
os.register_at_fork(before=lambda: counts.append(_fork.native_threads()))
client = resultd.Client({url!r})
client.AsyncResult("never").then(print)
for _ in range(20):
    client.server_info()
    open_before = _fork.native_threads()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    print(open_before > 0, counts.pop())
"""


def test_nothing_of_grpc_is_left_at_the_fork(server: Server) -> None:
    """20 of 20 times: threads of gRPC before, none at the fork itself."""
    program = PROGRAM.format(url=server.url)
    # From 3.12 on Python counts threads after the parent's hooks, which reopen the stream.
    quiet = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(quiet, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["True 0"] * 20


def test_threads_of_others_are_waited_for_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel that is not ours holds up the first fork for a second, not each."""
    monkeypatch.setattr(_fork, "_foreign", 0)
    monkeypatch.setattr(_fork, "_others", _fork._others)  # it is put back afterwards
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=5)
        began = time.monotonic()
        _fork._rest(began + 0.2)
        first = time.monotonic() - began
        _fork._look_around()  # as after every fork
        learned = _fork._foreign
        # More than there are: gRPC starts another thread when it pleases.
        monkeypatch.setattr(_fork, "_foreign", learned + 20)
        began = time.monotonic()
        _fork._rest(began + 10)
        second = time.monotonic() - began
    assert first >= 0.2
    assert learned > 0
    assert second < 5


def test_then_fires_in_a_child_of_a_result_the_parent_listens_to(
    client: Client, new_id: Callable[[], str]
) -> None:
    """The parent's listening does not come along; a `then()` in the child listens anew."""
    result = client.AsyncResult(new_id())
    result.then(lambda _: None)
    both = client.ResultSet([result, client.AsyncResult(new_id())])
    both.then(lambda _: None)

    def listens() -> bool:
        heard, all_heard = threading.Event(), threading.Event()
        result.then(lambda _: heard.set())
        both.then(lambda _: all_heard.set())
        client.store_results([(member.id, 1) for member in both])
        return heard.wait(5) and all_heard.wait(5)

    assert exit_code(in_child(listens)) == 0


UNNAMED = """
import _thread, threading, time
from resultd import _fork
let_go = threading.Event()
_fork._look_around()
# Unknown to the threading module, like a native thread, and named like the process.
_thread.start_new_thread(let_go.wait, ())
new = _fork.native_threads()
there_before, _ = _fork._others, _fork._look_around()
print(new, _fork.native_threads())
_fork._others = there_before
began = time.monotonic()
threading.Timer(0.2, let_go.set).start()
_fork._rest(began + 20)
print(0.2 <= time.monotonic() - began < 15, _fork.native_threads())
"""


def test_a_thread_without_a_name_is_waited_for_unless_it_was_there_before() -> None:
    """gRPC's threads get their names only when they run: one that is new is taken for its own."""
    done = subprocess.run([sys.executable, "-c", UNNAMED], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["1 0", "True 0"]


def test_a_list_of_threads_that_was_cut_short_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Linux ends the list at a thread that is ending; the one behind it is there all the same."""

    class Tasks(type(tmp_path)):  # type: ignore[misc]  # the platform's class, told by a value
        shown = 3

        def iterdir(self) -> Iterator[Path]:
            return itertools.islice(super().iterdir(), self.shown)

        def stat(self, *, follow_symlinks: bool = True) -> SimpleNamespace:
            return SimpleNamespace(st_nlink=2 + 3)  # not every file system counts them

    for tid in range(100, 103):
        task = tmp_path / str(tid)
        task.mkdir()
        (task / "comm").write_bytes(b"caf\xc3\n")  # cut in the middle of a letter
    monkeypatch.setattr(_fork, "_TASKS", Tasks(tmp_path))
    monkeypatch.setattr(_fork, "_others", frozenset({100, 101, 102}))
    assert _fork.native_threads() == 0
    monkeypatch.setattr(Tasks, "shown", 2)
    assert _fork.native_threads() == 1


SIGNALS = """
import os, signal, sys, resultd
from resultd import _fork

class Limit(Exception): pass

class Interrupted:
    def __init__(self):
        self.steps = []
    def step(self, name):
        self.steps.append(name)
        if self.steps.count(name) == 1:
            signal.raise_signal(number)
    def before_fork(self, deadline):
        self.step("before")
    def after_fork_in_parent(self):
        self.step("parent")
    def after_fork_in_child(self):
        self.step("child")
    def close_streams(self, deadline):
        pass

def limit(*_):
    raise Limit

signal.signal(signal.SIGUSR1, limit)
number = signal.{number}
client = resultd.Client({url!r})
{first}
something = Interrupted()
_fork._known.add(something)
try:
    if os.fork() == 0:
        os._exit(something.steps != ["before", "before", "child", "child"])
except (KeyboardInterrupt, Limit) as error:
    print(type(error).__name__)
print(something.steps, os.wait()[1], bool(client.server_info().engine))
"""


@pytest.mark.parametrize("first", ["", "client.server_info()"], ids=["no channel", "a channel"])
@pytest.mark.parametrize(
    ("number", "raised"), [("SIGINT", "KeyboardInterrupt"), ("SIGUSR1", "Limit")]
)
def test_a_signal_in_the_midst_of_a_fork_comes_after_it(
    server: Server, number: str, raised: str, first: str
) -> None:
    """What it broke off is done all the same, and what its handler raises is not dropped."""
    program = SIGNALS.format(url=server.url, number=number, first=first)
    quiet = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(quiet, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    steps = ["before", "before", "parent", "parent"]
    assert done.stdout.splitlines() == [raised, f"{steps} 0 True"]


EXIT = """
import atexit, resultd
from resultd import _channel

def later():  # after ours, which was registered after it
    (endpoint,) = _channel._endpoints.values()
    print(len(endpoint._streams), endpoint.watcher._hub.wanted)
    try:
        client.AsyncResult("never").get(timeout=2)  # a read of a busy machine, and a wait
    except resultd.TimeoutError:
        print("waited", endpoint.watcher.streaming)
    except resultd.UnavailableError as error:  # from 3.12 on: no thread can be begun
        print("waited", "shutdown" in str(error))

atexit.register(later)
client = resultd.Client({url!r})
client.AsyncResult("never").then(print)
while not client.watcher().streaming:
    pass
"""


def test_no_stream_is_open_when_the_interpreter_ends(server: Server) -> None:
    """Nor opened again, unless somebody goes on waiting."""
    program = EXIT.format(url=server.url)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["0 False", "waited True"]
