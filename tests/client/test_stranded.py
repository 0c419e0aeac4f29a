"""Where gRPC cannot begin its thread: in processes of their own, as a failure is one that hangs."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from resultd import _stranded
from resultd._effects import Open
from resultd.client import Client
from resultd.errors import UnavailableError
from resultd.testing import Server
from resultd.v1 import result_service_pb2
from tests.support import addresses

# Seconds that a process has. It needs some two.
SECONDS = 30

PRELUDE = """
import os, signal, threading
import resultd
from resultd import _stranded

begin = threading.Thread.start

def refuse(thread):
    if not thread.name.startswith("resultd"):
        raise RuntimeError("can't start new thread")
    begin(thread)

def threads(there):
    threading.Thread.start = begin if there else refuse

def tell(work):
    try:
        print(work())
    except resultd.ResultdError as error:
        print(type(error).__name__)

signal.alarm({seconds})  # who hangs, ends
client = resultd.Client({url!r})
"""
WAITS_IN_VAIN = """
client.store_result("stored", 1)
threads(False)
tell(lambda: client.AsyncResult("never").get(timeout=0.3))
print(_stranded.left())
"""
THEN = {
    "exit": ("", []),
    "exit that drops it": ("import gc; _stranded._stranded.clear(); gc.collect()", []),
    "wait": (
        """
threads(True)
threading.Timer(0.2, client.store_result, ("later", 3)).start()
tell(lambda: client.AsyncResult("later").get(timeout=10))
print(_stranded.left())
""",
        ["3", "False"],
    ),
    "store": (
        """
tell(lambda: client.store_result("more", 2).disposition)
other = resultd.Client({url!r} + "?timeout=29")
tell(lambda: other.store_result("another's", 2).disposition)
""",
        ["APPLIED", "APPLIED"],
    ),
    "close": ("threads(True); client.close(); print(_stranded.left())", ["False"]),
    "close without": ("client.close(); print(_stranded.left())", ["True"]),
    "fork": ("threads(True)\n{fork}", ["0 False"]),
    "fork without": ("{fork}", ["0 True"]),
}
FORK = """
if os.fork() == 0:
    signal.alarm({seconds})
    threads(True)
    client.store_result("child's", 2)
    os._exit(client.AsyncResult("child's").get(timeout=10) != 2 or _stranded.left())
print(os.wait()[1], _stranded.left())
"""
STORES_IN_VAIN = """
def store():
    tell(lambda: client.store_result("never", 1))

def stores():
    if {main}:
        return store()
    thread = threading.Thread(target=store)
    begin(thread)
    thread.join()

threads(False)
stores()
threads(True)
stores()
print(_stranded.left())
client.close()
"""


def run(program: str, url: str, **more: object) -> list[str]:
    """Run a program to its end, and give what it printed."""
    text = (PRELUDE + program).format(url=url, seconds=SECONDS, **more)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", text],
        capture_output=True,
        text=True,
        timeout=SECONDS + 20,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("then", THEN)
def test_a_stream_that_could_not_be_begun_stops_nothing_else(server: Server, then: str) -> None:
    """Not the waits after it, nor calls, close(), os.fork(), or the end of the interpreter."""
    program, printed = THEN[then]
    program = program.replace("{fork}", FORK)
    assert run(WAITS_IN_VAIN + program, server.url) == ["TimeoutError", "True", *printed]


@pytest.mark.parametrize("main", [True, False], ids=["main thread", "another"])
def test_a_call_without_a_server_ends_in_its_time_without_threads(main: bool) -> None:
    """As with them, and the calls after it; the error is one of ours."""
    url = f"resultd://{addresses.free_address()}?timeout=0.5"
    ended = ["UnavailableError", "UnavailableError", "False"]
    assert run(STORES_IN_VAIN, url, main=main) == ended


@pytest.mark.parametrize("refused", [2, 3], ids=["sender", "reader"])
def test_a_stream_that_lacks_another_thread_is_ended(
    server: Server, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """Nothing of it is left, and the next can be opened."""
    begin = threading.Thread.start
    begun: list[str] = []

    def start(thread: threading.Thread) -> None:
        if thread.name != "resultd-call":
            begun.append(thread.name)
            if len(begun) == refused:
                raise RuntimeError("can't start new thread")
        begin(thread)

    with Client(f"{server.url}/a-connection-of-its-own") as client:
        endpoint = client._open()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            with pytest.raises(UnavailableError, match="can't start new thread") as raised:
                endpoint.handle(Open("Watch", None))
        assert raised.value.retryable
        assert (endpoint._streams, _stranded.left()) == (set(), False)
        stream = endpoint.handle(Open("Watch", None))
        stream.send(result_service_pb2.WatchRequest(sequence=1))
        (frame,) = stream.mailbox.receive(5)
        assert frame.control.sequence == 1
        stream.cancel()


FINALISER = """
import builtins, os, signal
from resultd import Client, ResultdError  # late imports fail when it runs
from resultd.testing import Server

class Late:
    def __del__(self):
        for work in self.work:
            try:
                said = str(work())
            except ResultdError as error:
                said = type(error).__name__
            os.write(1, said.encode() + b"\\n")

signal.alarm({seconds})
server = Server().start()
client = Client(server.url + "?timeout=1&attempt_timeout=0.5")
client.store_result("stored", 1)
if {away}:
    server.stop()
builtins.late = Late()
builtins.late.work = [
    lambda: client.store_result("late", 2).disposition,
    lambda: client.AsyncResult("never").get(timeout=0.5),
    lambda: list(client.group("none").iterate(timeout=0.5)),
]
"""


@pytest.mark.parametrize(
    ("away", "said"),
    [
        (False, ["APPLIED", "UnavailableError", "UnavailableError"]),
        (True, ["UnavailableError", "TimeoutError", "UnavailableError"]),
    ],
    ids=["there", "away"],
)
def test_a_finaliser_at_the_interpreters_end_is_answered_in_its_time(
    away: bool, said: list[str]
) -> None:
    """Calls are made, and tried again; waits are refused, as no thread runs any more."""
    program = FINALISER.format(seconds=SECONDS, away=away)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS + 20
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, said), done.stderr
