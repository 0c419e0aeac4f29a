"""The yardstick of unary calls: bare grpc.aio on uvloop, bytes in, the same bytes out."""

from __future__ import annotations

import asyncio
import signal
import sys

import grpc
import uvloop


async def _echo(request: bytes, _: object) -> bytes:
    return request


async def _serve() -> None:
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("Echo", {"Echo": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    sys.stdout.write(f"echo ready on 127.0.0.1:{port}\n")
    sys.stdout.flush()
    await stopped.wait()
    await server.stop(None)


if __name__ == "__main__":
    uvloop.run(_serve())
