"""Kinds of concurrency; real gevent processes are tested end to end."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import grpc.experimental.gevent
import pytest
from celery.exceptions import ImproperlyConfigured

from resultd.celery import _environment


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What gRPC was told about gevent, in a process that told it nothing yet."""
    found: list[str] = []
    monkeypatch.setattr(grpc.experimental.gevent, "init_gevent", lambda: found.append("gevent"))
    monkeypatch.setattr(_environment, "_prepared", False)
    return found


def environment(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Has kombu find a kind of concurrency."""
    monkeypatch.setattr(_environment, "detect_environment", lambda: name)


def test_threads_and_processes_need_nothing(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """GRPC is made for them."""
    environment(monkeypatch, "default")
    _environment.prepare()
    assert told == []


def test_grpc_is_told_of_gevent_once(monkeypatch: pytest.MonkeyPatch, told: list[str]) -> None:
    """However many backends there are."""
    environment(monkeypatch, "gevent")
    for _ in range(3):
        _environment.prepare()
    assert told == ["gevent"]


def test_eventlet_is_refused(monkeypatch: pytest.MonkeyPatch, make_app: Any) -> None:
    """With the pools that work, before anything hangs."""
    environment(monkeypatch, "eventlet")
    with pytest.raises(ImproperlyConfigured, match="-P prefork, -P threads, -P gevent"):
        _ = make_app().backend


def test_a_backend_brings_grpc_with_it() -> None:
    """Its children need not import it, which takes time and may be cut in half by a fork."""
    program = (
        "import sys, celery\n"
        "assert 'grpc' not in sys.modules\n"
        "celery.Celery('x', backend='resultd://127.0.0.1:1').backend\n"
        "assert 'grpc' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
