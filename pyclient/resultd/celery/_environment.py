"""What kind of concurrency the process runs: gRPC has to go with it."""

from __future__ import annotations

import importlib

from celery.exceptions import ImproperlyConfigured
from kombu.utils.compat import detect_environment


def prepare() -> None:
    """Import gRPC; nothing is opened.

    A worker's children find it imported: none of them takes the time, and none is forked
    while another thread is half way through the import, which it could never finish.

    Raises:
        ImproperlyConfigured: the process runs eventlet.
    """
    if detect_environment() == "eventlet":
        raise ImproperlyConfigured(
            "The resultd backend cannot run under eventlet, which gRPC does not support: start "
            "the worker with -P prefork, -P threads, -P gevent or -P solo."
        )
    importlib.import_module("resultd._channel")
