"""Which kind of concurrency the process runs, and what gRPC needs for it."""

from __future__ import annotations

from celery.exceptions import ImproperlyConfigured
from kombu.utils.compat import detect_environment

_prepared = False


def prepare() -> None:
    """Make gRPC work under gevent; nothing else needs anything.

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
