"""Readers that resume as the protocol says, each followed by a validator.

They speak the protocol by themselves: the client's own way of resuming is not what judges
the server. A call that is silent for 2.5 heartbeats is given up together with its connection.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from resultd.v1 import result_service_pb2 as pb
from tests.support.frames import anext_of, seconds
from tests.support.stubs import Stubs
from tests.support.validator import GroupValidator, TasksValidator

HEARTBEAT_S = 1.0
SILENCE_S = 2.5 * HEARTBEAT_S
RESUME_AFTER_S = 0.05
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)
FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
Judge = GroupValidator | TasksValidator
Opened = tuple[Any, Any]
"""A call, and its first request if that is written to it."""


class Reader:
    """One wait, over as many calls and connections as it takes."""

    def __init__(
        self, address: str, judge: Judge, open_call: Callable[[Stubs], Awaitable[Any]]
    ) -> None:
        self.judge = judge
        self.calls = 0
        self.silences = 0
        self._address = address
        self._open_call = open_call
        self._channel: grpc.aio.Channel | None = None

    async def run(self) -> None:
        """Until the wait is over. Raises AioRpcError with a code that is not resumed."""
        try:
            while not self._over():
                if self.calls:
                    await asyncio.sleep(RESUME_AFTER_S * random.uniform(0.5, 1.5))
                await self._one_call()
        finally:
            await self._disconnect()

    def _over(self) -> bool:
        # A call that ends after its last event and before its END leaves nothing to ask for.
        judge = self.judge
        return judge.over or (isinstance(judge, TasksValidator) and not judge.pending)

    async def _one_call(self) -> None:
        self.calls += 1
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._address, options=OPTIONS)
        if isinstance(self.judge, TasksValidator):
            self.judge.resumed()
        call = None
        try:
            call = await asyncio.wait_for(self._open_call(Stubs(self._channel)), SILENCE_S)
            frames = call.__aiter__()
            while not self.judge.over:
                self.judge.take(await asyncio.wait_for(anext_of(frames), SILENCE_S))
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            self.silences += 1
            await self._disconnect()
        except grpc.aio.AioRpcError as error:
            if error.code() in FINAL:
                raise
        except (asyncio.InvalidStateError, grpc.aio.UsageError):
            return  # the call ended while a request was written to it
        finally:
            if call is not None:
                call.cancel()

    async def _disconnect(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def iterate(
    address: str, judge: GroupValidator, group_id: str, order: pb.MemberOrder.ValueType
) -> Reader:
    """An Iterate: resumed with the last `after`."""

    async def open_call(stubs: Stubs) -> Any:
        return stubs.results.Iterate(
            pb.IterateRequest(
                group_id=group_id,
                order=order,
                after=judge.after,
                heartbeat=seconds(HEARTBEAT_S),
            )
        )

    return Reader(address, judge, open_call)


def wait_for(address: str, judge: TasksValidator, *, transitions: bool = False) -> Reader:
    """A WaitFor: resumed with the ids still pending."""

    async def open_call(stubs: Stubs) -> Any:
        return stubs.results.WaitFor(
            pb.WaitForRequest(
                task_ids=judge.pending, transitions=transitions, heartbeat=seconds(HEARTBEAT_S)
            )
        )

    return Reader(address, judge, open_call)


def watch_tasks(address: str, judge: TasksValidator, *, transitions: bool = False) -> Reader:
    """A Watch for tasks: resumed with the ids still pending."""

    async def open_call(stubs: Stubs) -> Any:
        call = stubs.results.Watch()
        await call.write(
            pb.WatchRequest(
                add_task_ids=judge.pending, transitions=transitions, heartbeat=seconds(HEARTBEAT_S)
            )
        )
        return call

    return Reader(address, judge, open_call)


def watch_group(address: str, judge: GroupValidator, group_id: str) -> Reader:
    """A Watch for a group: resumed with the last `after`."""

    async def open_call(stubs: Stubs) -> Any:
        call = stubs.results.Watch()
        wanted = pb.GroupWatch(group_id=group_id, after=judge.after)
        await call.write(pb.WatchRequest(add_groups=[wanted], heartbeat=seconds(HEARTBEAT_S)))
        return call

    return Reader(address, judge, open_call)
