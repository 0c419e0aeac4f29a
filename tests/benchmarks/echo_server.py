"""The yardstick of calls and streams: bare grpc.aio on uvloop, bytes in, bytes out.

Echo returns what it gets. Wait sends an empty message, so that who waits knows it is
expected, and then what a Ping for the same name says; it ends with that.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import grpc
import uvloop

_STREAMS_MAX = 100_000
_GRACE_S = 1.0
_waiting: dict[bytes, asyncio.Future[bytes]] = {}


async def _echo(request: bytes, _: object) -> bytes:
    return request


async def _wait(name: bytes, _: object) -> AsyncIterator[bytes]:
    _waiting[name] = asyncio.get_running_loop().create_future()
    try:
        yield b""
        yield await _waiting[name]
    finally:
        del _waiting[name]


async def _ping(request: bytes, _: object) -> bytes:
    """`request`: a name, a zero byte, and what its stream is to say; which is the answer too."""
    name, _, said = request.partition(b"\0")
    _waiting[name].set_result(said)
    return said


async def _serve() -> None:
    options = (("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", _STREAMS_MAX))
    server = grpc.aio.server(options=options)
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Wait": grpc.unary_stream_rpc_method_handler(_wait),
        "Ping": grpc.unary_unary_rpc_method_handler(_ping),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    sys.stdout.write(f"echo ready on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop(_GRACE_S)


if __name__ == "__main__":
    uvloop.run(_serve())
