"""Kinds of concurrency, as a backend meets them when it is made."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from celery.exceptions import ImproperlyConfigured

from resultd.celery import _environment


@pytest.mark.parametrize("kind", ["default", "gevent"])
def test_threads_processes_and_gevent_need_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The client sees to gevent when it opens its channel."""
    monkeypatch.setattr(_environment, "detect_environment", lambda: kind)
    _environment.prepare()


def test_eventlet_is_refused(monkeypatch: pytest.MonkeyPatch, make_app: Any) -> None:
    """With the pools that work, before anything hangs."""
    monkeypatch.setattr(_environment, "detect_environment", lambda: "eventlet")
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
