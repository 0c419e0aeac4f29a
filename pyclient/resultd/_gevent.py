"""gRPC in a process that gevent has patched."""

from __future__ import annotations

import sys

_prepared = False


def prepare() -> None:
    """Tell gRPC, if it is so. To be called before a channel is made.

    Not told, a patched process hangs in its first call. Looked at as late as that because a
    process may be patched after this package was imported: gunicorn's gevent workers are,
    when the application is preloaded.
    """
    global _prepared
    monkey = sys.modules.get("gevent.monkey")
    if _prepared or monkey is None or not monkey.is_module_patched("threading"):
        return
    from grpc.experimental import gevent

    gevent.init_gevent()
    _prepared = True
