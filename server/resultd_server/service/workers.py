"""WorkerService: cancellation, stored and carried to workers of any language."""

from __future__ import annotations

from collections.abc import AsyncIterator

from resultd.v1 import state_pb2
from resultd.v1 import worker_service_pb2 as pb
from resultd_server import limits
from resultd_server.core.sources import RevocationSource
from resultd_server.engine.base import Engine
from resultd_server.service import validate
from resultd_server.service.registry import Call
from resultd_server.service.streams import Streams


class WorkerService:
    """Thin: every method validates, asks the engine, and answers."""

    def __init__(self, engine: Engine, streams: Streams) -> None:
        self._engine = engine
        self._streams = streams

    async def revoke_tasks(
        self, request: pb.RevokeTasksRequest, call: Call
    ) -> pb.RevokeTasksResponse:
        ids = validate.ids("task_ids", request.task_ids)
        signal = validate.text("signal", request.signal, limits.SIGNAL_BYTES_MAX) or "SIGTERM"
        validate.no_control("signal", signal)
        reason = validate.text("reason", request.reason, limits.SHORT_TEXT_BYTES_MAX)
        wishes = [
            pb.Revocation(
                task_id=task_id, terminate=request.terminate, signal=signal, reason=reason
            )
            for task_id in ids
        ]
        answer = pb.RevokeTasksResponse()
        states = await self._engine.revoke(call.namespace, wishes)
        for task_id, state in zip(ids, states, strict=True):
            if state == state_pb2.STATE_REVOKED:
                answer.revoked_task_ids.append(task_id)
            elif state:
                answer.terminal_task_ids.append(task_id)
            else:
                answer.requested_task_ids.append(task_id)
        return answer

    async def watch_revocations(
        self, requests: AsyncIterator[pb.WatchRevocationsRequest], call: Call
    ) -> None:
        source = RevocationSource(self._engine, call.namespace)

        def apply(request: pb.WatchRevocationsRequest) -> None:
            validate.ids("add_task_ids", request.add_task_ids, empty=True)
            validate.ids("remove_task_ids", request.remove_task_ids, empty=True)
            heartbeat_s = validate.heartbeat_s(request)
            if not source.begun:
                source.heartbeat_s = heartbeat_s
            source.apply(request)

        await self._streams.run_changing(call, source, requests, apply)
