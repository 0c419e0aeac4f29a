"""grpc.health.v1, for anybody.

Our own servicer: in gRPC's, which writes while it holds the lock of whoever tells it something,
one watcher that takes no bytes keeps the server from being drained. Not through what a drain
closes: that the server goes down is what it has to tell.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from resultd_server import limits
from resultd_server.errors import Overloaded
from resultd_server.service.registry import Call

SERVICE: Any = health_pb2.DESCRIPTOR.services_by_name["Health"]
NAME = health.SERVICE_NAME
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """What each service is, and who wants to hear of it."""

    def __init__(self, watches_max: int = limits.HEALTH_WATCHES_MAX) -> None:
        self._services: dict[str, int] = {}
        self._watches_max = watches_max
        self._watches: set[asyncio.Event] = set()

    def set(self, service: str, status: int) -> None:
        """For whoever asks, and for those who watch."""
        self._services[service] = status
        for changed in self._watches:
            changed.set()

    async def check(self, request: Any, call: Call) -> Any:
        status = self._services.get(request.service)
        if status is None:
            await call.context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
        return _said(status)

    async def list(self, _: Any, __: Call) -> Any:
        """Every service; newer than the oldest library this server runs with, unlike the others."""
        answer: Any = health_pb2.HealthListResponse()  # type: ignore[attr-defined]  # the same
        for service, status in self._services.items():
            answer.statuses[service].status = status
        return answer

    async def watch(self, request: Any, call: Call) -> None:
        if len(self._watches) >= self._watches_max:
            raise Overloaded(f"{self._watches_max} streams watch health: call Check, or try later.")
        changed = asyncio.Event()
        self._watches.add(changed)
        try:
            await self._tell(request.service, changed, call)
        except asyncio.TimeoutError:
            raise Overloaded(
                f"The stream was not read for {limits.STALLED_WRITE_S:g} s: watch again."
            ) from None
        finally:
            self._watches.discard(changed)

    async def _tell(self, service: str, changed: asyncio.Event, call: Call) -> None:
        """What the service is, and again when that is something else. Raises TimeoutError."""
        told = None
        while True:
            changed.clear()
            status = self._services.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                frame = _said(status).SerializeToString()
                await asyncio.wait_for(call.context.write(frame), limits.STALLED_WRITE_S)
                told = status
            else:
                await changed.wait()


def _said(status: int | None) -> Any:
    answer: Any = health_pb2.HealthCheckResponse()
    answer.status = status
    return answer
