"""How yardsticks are served: grpc.aio with nothing around it, until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import grpc

_STREAMS_MAX = 100_000
_GRACE_S = 1.0


async def serve(service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
    """Serves the methods of a service, bytes in, bytes out; says on standard output where."""
    options = (("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", _STREAMS_MAX))
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    sys.stdout.write(f"{service.lower()} ready on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop(_GRACE_S)
