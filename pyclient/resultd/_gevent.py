"""gRPC in a process that gevent has patched."""

from __future__ import annotations

import sys

_prepared = False


def has_patched() -> bool:
    """Say whether threads are greenlets by now, all of the main thread."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def prepare() -> None:
    """Tell gRPC, if it is so. To be called before a channel is made.

    Not told, a patched process hangs in its first call. Looked at as late as that because a
    process may be patched after this package was imported: gunicorn's gevent workers are,
    when the application is preloaded.
    """
    global _prepared
    if _prepared or not has_patched():
        return
    from grpc.experimental import gevent

    gevent.init_gevent()
    _prepared = True
