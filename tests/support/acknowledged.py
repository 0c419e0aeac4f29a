"""Callers who write down what a server acknowledged, and look for it after a fault.

load = Load(seed)
await load.run(server.address)        # until the server is gone
missing = await load.missing(server_again.address)
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

import grpc

from resultd.v1 import group_service_pb2, state_pb2
from resultd.v1 import result_service_pb2 as pb
from tests.support import reports
from tests.support.stubs import Stubs

CALLERS = 16
BATCH_MAX = 60
VALUE_BYTES_MAX = 3_000
CALL_S = 20.0

Standing = tuple[str, bytes]
"""(state or existence, content) of a task."""

UNKNOWN: Standing = ("UNKNOWN", b"")
FORGOTTEN: Standing = ("FORGOTTEN", b"")
STARTED: Standing = ("STARTED", b"")


class Load:
    """Callers of one server, each with tasks and a group of its own.

    `stood`: what may be read of each task now: what was acknowledged last, and what was
    asked for and not answered.
    """

    def __init__(
        self, seed: int, value_bytes: int = VALUE_BYTES_MAX, batch: int = BATCH_MAX
    ) -> None:
        """`value_bytes`: the largest a value is; `batch`: the most results a call has."""
        self._random = random.Random(seed)
        self._value_bytes = value_bytes
        self._batch = batch
        self.stood: dict[str, list[Standing]] = defaultdict(lambda: [UNKNOWN])
        self.counted: dict[str, list[int]] = {}
        self.acknowledged = 0
        self.refusals: list[grpc.aio.AioRpcError] = []

    async def run(self, address: str) -> None:
        """Calls until the server does not answer as it should."""
        async with grpc.aio.insecure_channel(address) as channel:
            stubs = Stubs(channel)
            seeds = [self._random.random() for _ in range(CALLERS)]
            await asyncio.gather(*(self._call(stubs, n, seed) for n, seed in enumerate(seeds)))

    async def _call(self, stubs: Stubs, number: int, seed: float) -> None:
        chance = random.Random(seed)
        group_id = f"g{number}"
        counted = self.counted.setdefault(group_id, [0, 0])
        try:
            await stubs.groups.CreateGroup(
                group_service_pb2.CreateGroupRequest(group_id=group_id), timeout=CALL_S
            )
            while True:
                await self._act(stubs, chance, group_id, counted)
        except grpc.aio.AioRpcError as error:
            self.refusals.append(error)

    async def _act(
        self, stubs: Stubs, chance: random.Random, group_id: str, counted: list[int]
    ) -> None:
        """One task's life, or a batch of them. `counted`: at least so many members, at most."""
        first = counted[1]
        count = chance.choice((1, 1, 1, chance.randint(2, self._batch)))
        ids = [f"{chance.randbytes(4).hex()}-{group_id}-{first + n}" for n in range(count)]
        if count == 1:
            with self._asking(ids, [STARTED]):
                await stubs.results.StoreResult(
                    reports.state(ids[0], state_pb2.STATE_STARTED), timeout=CALL_S
                )
        contents = [chance.randbytes(chance.randint(1, self._value_bytes)) for _ in ids]
        finished = [
            reports.success(id_, content, group_id=group_id)
            for id_, content in zip(ids, contents, strict=True)
        ]
        counted[1] += count
        with self._asking(ids, [("SUCCESS", content) for content in contents]):
            answer = await stubs.results.BatchStoreResults(reports.batch(finished), timeout=CALL_S)
            assert all(outcome.HasField("result") for outcome in answer.outcomes)
        counted[0] += count
        if chance.random() < 0.2:
            with self._asking(ids[:1], [FORGOTTEN]):
                await stubs.results.ForgetResults(
                    pb.ForgetResultsRequest(task_ids=ids[:1]), timeout=CALL_S
                )

    def _asking(self, ids: list[str], wanted: list[Standing]) -> _Asking:
        return _Asking(self, ids, wanted)

    async def missing(self, address: str) -> list[str]:
        """What a server should have and has not, a line each."""
        lines = []
        async with grpc.aio.insecure_channel(address) as channel:
            stubs = Stubs(channel)
            for id_, found in (await read_all(stubs, list(self.stood))).items():
                if found not in self.stood[id_]:
                    said = [(state, content[:8]) for state, content in self.stood[id_]]
                    lines.append(f"{id_}: {(found[0], found[1][:8])}, not one of {said}")
            for group_id, (least, most) in self.counted.items():
                done = await done_in(stubs, group_id)
                if not least <= done <= most:
                    lines.append(f"{group_id}: counts {done}, not {least} to {most}")
        return lines


class _Asking:
    """While inside, either may be read; after an answer only what was asked for."""

    def __init__(self, load: Load, ids: list[str], wanted: list[Standing]) -> None:
        self._load = load
        self._wanted = dict(zip(ids, wanted, strict=True))

    def __enter__(self) -> None:
        for id_, standing in self._wanted.items():
            self._load.stood[id_] = [*self._load.stood[id_], standing]

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            for id_, standing in self._wanted.items():
                self._load.stood[id_] = [standing]
            self._load.acknowledged += len(self._wanted)


async def done_in(stubs: Stubs, group_id: str) -> int:
    """How many of a group's members a server says are done."""
    asked = group_service_pb2.GetGroupRequest(group_id=group_id)
    return (await stubs.groups.GetGroup(asked, timeout=CALL_S)).group.counts.done


async def read_all(stubs: Stubs, ids: list[str]) -> dict[str, Standing]:
    """What a server says of tasks."""
    found: dict[str, Standing] = {}
    while ids:
        asked, ids = ids[:500], ids[500:]
        answer = await stubs.results.BatchGetResults(
            pb.BatchGetResultsRequest(task_ids=asked), timeout=CALL_S
        )
        for meta in answer.metas:
            known = meta.existence == state_pb2.EXISTENCE_KNOWN
            state = state_pb2.State.Name(meta.state).removeprefix("STATE_")
            existence = state_pb2.Existence.Name(meta.existence).removeprefix("EXISTENCE_")
            found[meta.task_id] = (state if known else existence, meta.value.data)
        ids += answer.deferred_task_ids
    return found
