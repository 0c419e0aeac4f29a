"""grpc.reflection.v1alpha, for anybody: gRPC's own answers, with bounds of ours.

A module apart: it is imported only where it is switched on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from grpc_reflection.v1alpha import reflection, reflection_pb2

from resultd_server import limits
from resultd_server.errors import Overloaded
from resultd_server.service.registry import Call

SERVICE: Any = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
NAME = reflection.SERVICE_NAME


class Reflection:
    """What services there are, and how they are called."""

    def __init__(
        self,
        services: Sequence[str],
        most: int = limits.REFLECTIONS_MAX,
        age_s: float = limits.REFLECTION_S,
    ) -> None:
        self._told: Any = reflection.aio.ReflectionServicer(services)  # untyped
        self._most = most
        self._age_s = age_s
        self._streams = 0

    async def server_reflection_info(self, requests: AsyncIterator[Any], call: Call) -> None:
        if self._streams >= self._most:
            raise Overloaded(f"{self._most} streams ask for reflection: try later.")
        self._streams += 1
        try:
            await asyncio.wait_for(self._answer(requests, call), self._age_s)
        except asyncio.TimeoutError:
            raise Overloaded(
                f"A stream of reflection lasts {self._age_s:g} s: begin another."
            ) from None
        finally:
            self._streams -= 1

    async def _answer(self, requests: AsyncIterator[Any], call: Call) -> None:
        async for answer in self._told.ServerReflectionInfo(requests, call.context):
            await call.context.write(answer.SerializeToString())
