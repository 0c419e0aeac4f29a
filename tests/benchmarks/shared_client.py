"""One stream for a process's waits: blocking stubs on the bare server.

As our own client does it and with nothing of ours: a report is built and sent by a blocking
call, which is answered once 4 KiB are on disk; an open stream brings its record, the thread that
reads it hands it to the one that waits, and that reads its value. A process that takes orders.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from uuid import uuid4

import grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import state_pb2, task_pb2, value_pb2
from tests.benchmarks.orders import Partner, partner, take_orders
from tests.benchmarks.wakes import wakes

_MODULE = "tests.benchmarks.shared_client"
_VALUE = "x" * 298

_Mailbox = queue.SimpleQueue[task_pb2.TaskMeta]


class Shared:
    """A storer, and waits on one stream."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stack = contextlib.ExitStack()  # never left: what it holds ends with this process
        self._storer: Partner | None = None
        channel = grpc.insecure_channel(address)
        self._tell: grpc.UnaryUnaryMultiCallable[pb.StoreResultRequest, bytes]
        self._tell = channel.unary_unary(
            "/Echo/KeptTell", request_serializer=pb.StoreResultRequest.SerializeToString
        )
        self._watch: grpc.StreamStreamMultiCallable[pb.WatchRequest, pb.WatchResponse]
        self._watch = channel.stream_stream(
            "/Echo/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )
        grpc.channel_ready_future(channel).result(timeout=10)
        self._requests: queue.SimpleQueue[pb.WatchRequest] = queue.SimpleQueue()
        self._waiting: dict[str, _Mailbox] = {}
        self._expected: set[str] = set()

    def wake(self, samples: int) -> dict[str, float]:
        """Call in another process, 4 KiB on disk → its value, handed to a thread that waits."""
        if self._storer is None:
            self._storer = self._stack.enter_context(partner(_MODULE, self._address))
            threading.Thread(target=self._read, daemon=True).start()
        ids = [str(uuid4()) for _ in range(samples + samples // 10)]
        return wakes(ids, self._storer, self._get, self._expected.__contains__)

    def store_one(self, task_id: str) -> dict[str, float]:
        """Reports a result; when that was called, by the clock that all processes share."""
        called_s = time.perf_counter()
        value = value_pb2.Payload(content_type="application/json", data=json.dumps(_VALUE).encode())
        meta = task_pb2.TaskMeta(task_id=task_id, state=state_pb2.STATE_SUCCESS, value=value)
        self._tell(pb.StoreResultRequest(meta=meta))
        return {"called_s": called_s}

    def _get(self, task_id: str) -> object:
        mailbox = self._waiting[task_id] = queue.SimpleQueue()
        self._requests.put(pb.WatchRequest(add_task_ids=[task_id]))
        return json.loads(mailbox.get().value.data)

    def _read(self) -> None:
        for frame in self._watch(self._outgoing()):
            for event in frame.events:
                if event.task.terminal:
                    self._waiting.pop(event.task.task_id).put(event.task)
                else:
                    self._expected.add(event.task.task_id)

    def _outgoing(self) -> Iterator[pb.WatchRequest]:
        while True:
            yield self._requests.get()


if __name__ == "__main__":
    take_orders(Shared(sys.argv[1]))
