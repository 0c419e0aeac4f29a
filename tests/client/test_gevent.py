"""The client for threads in a process that gevent has patched: waiting greenlets are no threads."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from resultd import _gevent
from resultd.testing import Server

PROGRAM = """
{before}
import json, time, gevent, resultd
{after}
client = resultd.Client({url!r})
def wait(number):
    return client.AsyncResult(f"gevent-{{number % 10}}").get(timeout=10)
waiting = [gevent.spawn(wait, number) for number in range(100)]
began = time.monotonic()
gevent.sleep(0.2)
slept = time.monotonic() - began
client.store_results([(f"gevent-{{number}}", number) for number in range(10)])
gevent.joinall(waiting, timeout=20)
print(json.dumps([slept, [each.value for each in waiting]]))
client.close()
"""
PATCH = "from gevent import monkey; monkey.patch_all()"


@pytest.mark.parametrize(("before", "after"), [(PATCH, ""), ("", PATCH)], ids=["first", "late"])
def test_a_patched_program_needs_nothing_else(server: Server, before: str, after: str) -> None:
    """100 greenlets wait at a time, and none stops the others; patched before or after import."""
    pytest.importorskip("gevent")
    program = PROGRAM.format(before=before, after=after, url=server.url)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=40
    )
    assert (done.returncode, done.stderr) == (0, "")
    slept, values = json.loads(done.stdout)
    assert values == [number % 10 for number in range(100)]
    assert 0.2 <= slept < 5  # not the 10 s of a get() that blocks


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What gRPC is told."""
    words: list[str] = []
    stand_in = ModuleType("grpc.experimental.gevent")
    stand_in.__dict__["init_gevent"] = lambda: words.append("gevent")
    monkeypatch.setitem(sys.modules, "grpc.experimental.gevent", stand_in)
    monkeypatch.setattr("grpc.experimental.gevent", stand_in, raising=False)
    monkeypatch.setattr(_gevent, "_prepared", False)
    return words


@pytest.mark.parametrize("patched", [True, False])
def test_grpc_is_told_once_and_only_if_it_is_so(
    monkeypatch: pytest.MonkeyPatch, told: list[str], patched: bool
) -> None:
    """However many channels are made, gRPC hears of gevent once; gevent unpatched is nothing."""
    monkey = SimpleNamespace(is_module_patched=lambda name: patched)
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    _gevent.prepare()
    _gevent.prepare()
    assert told == ["gevent"] * patched


def test_without_gevent_nothing_is_imported(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """A process that never imported gevent does not do so now."""
    monkeypatch.delitem(sys.modules, "gevent.monkey", raising=False)
    _gevent.prepare()
    assert told == []
    assert "gevent.monkey" not in sys.modules
