"""Which kind of concurrency the process runs, and what gRPC needs for it."""

from __future__ import annotations

import importlib

from celery.exceptions import ImproperlyConfigured
from kombu.utils.compat import detect_environment

_prepared = False


def prepare() -> None:
    """Import gRPC, and make it work under gevent; nothing is opened.

    A worker's children find it imported: none of them takes the time, and none is forked
    while another thread is half way through the import, which it could never finish.

    Raises:
        ImproperlyConfigured: the process runs eventlet.
    """
    global _prepared
    environment = detect_environment()
    if environment == "eventlet":
        raise ImproperlyConfigured(
            "The resultd backend cannot run under eventlet, which gRPC does not support: start "
            "the worker with -P prefork, -P threads, -P gevent or -P solo."
        )
    if environment == "gevent" and not _prepared:
        # Without this the first call of a monkey-patched process hangs.
        from grpc.experimental import gevent

        gevent.init_gevent()
        _prepared = True
    importlib.import_module("resultd._channel")
