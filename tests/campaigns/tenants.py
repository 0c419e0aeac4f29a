"""Tenants that use the same ids: `python -m tests.campaigns.tenants --size ci --seed 7`.

Several tenants make every call there is at random, all at once, on one server: with the ids of
the others, their page tokens, their places in streams, the tokens of their claims; and hold
streams while the others change what they wait for. Beside it every tenant has a twin of the
server for itself. What the two answer differs only where another tenant shows through: in a
value, a count, a status, a page that ends elsewhere, an event. What is foreign is missing for
the twin, so it has to look like that. All that a tenant writes carries a word nobody else
knows, which is looked for in every byte that others are sent.

Requests are made from the descriptors (`tests/support/tenants.py`): a new RPC takes part, or
the campaign does not run.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import logging
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from resultd.v1 import group_pb2, group_service_pb2, worker_service_pb2
from resultd_server.access.roles import NEEDED, Role
from tests.campaigns._record import Campaign, Size, Tally
from tests.fuzz.targets import BUGS
from tests.support.access import AuthFile, asking, with_token
from tests.support.request_fields import METHODS
from tests.support.server_process import ServerProcess
from tests.support.tenants import Tenant, Writer, filled, keep
from tests.support.twins import Answer, Listener, Side, parts_of

NOBODY = {"tenant-1": "nobody-1", "tenant-2": "nobody-2", "tenant-3": "nobody-3"}
"""The namespaces there are, and one that is not in the place of each."""

READS = tuple(name for name in METHODS if NEEDED[name] == Role.READER)
LISTS_CLAIMABLE = "resultd.v1.GroupService.ListGroups"
CREATE, REVOKE = "resultd.v1.GroupService.CreateGroup", "resultd.v1.WorkerService.RevokeTasks"
RESUMES = frozenset({"after", "members_after"})
"""Fields of requests that hold the `after` of an answer."""
SHOWN = 200
"""Characters of an answer that a fault shows."""

TRESPASSES, HOLDS, LETS_GO = 0.08, 0.15, 0.12
"""How likely a step is that; the others are calls."""


@dataclass(frozen=True)
class Plan:
    """How many steps of all tenants together, and on which server.

    Attributes:
        round_steps: after so many a new store is begun.
        workers: processes of the server, a round each.
        program: the server, or one with a fault planted.
    """

    steps: int
    round_steps: int = 10_000
    workers: tuple[int, ...] = (1, 2)
    program: tuple[str, ...] = ("resultd_server",)


class Broken(Exception):
    """The law does not hold; says how."""


class Player:
    """One tenant, the server it shares and the twin it has for itself."""

    def __init__(self, tenant: Tenant, shared: Side, twin: Side, tally: Tally) -> None:
        self.tenant = tenant
        self.others: Sequence[Player] = ()
        self._shared = shared
        self._twin = twin
        self._tally = tally
        self._held: list[tuple[str, Listener, Listener]] = []
        self._holds = 0

    async def step(self) -> None:
        """Something at random. Raises Broken."""
        dice = self.tenant.dice
        self._tally.counts["steps"] += 1
        if self._held and dice.random() < LETS_GO:
            await self._let_go()
            return
        # Who holds a stream changes nothing meanwhile: all it is told then comes from others.
        name = dice.choice(READS if self._held else tuple(METHODS))
        if dice.random() < TRESPASSES:
            await self._trespass(name)
        elif not METHODS[name].server_streaming:
            await self._ask(name, self._request(name))
        elif not self._held and dice.random() < HOLDS:
            await self._hold(name)
        else:
            await self._glance(name)

    async def finish(self) -> None:
        """Ends what it holds. Raises Broken."""
        if self._held:
            await self._let_go()

    def close(self) -> None:
        """Hangs up, wherever it is."""
        for _, *listeners in self._held:
            for listener in listeners:
                listener.close()
        self._held.clear()

    def _request(self, name: str, held: str = "") -> Any:
        writer = Writer(self.tenant, [each.tenant for each in self.others], held)
        return filled(METHODS[name].input_type, writer)

    async def _ask(self, name: str, request: Any) -> None:
        self._tally.counts["calls"] += 1
        raw = request.SerializeToString()
        shared = await self._shared.ask(METHODS[name], raw)
        twin = await self._twin.ask(METHODS[name], self._for_twin(request))
        page = getattr(shared.message, "next_page_token", "")
        self._look_through(name, raw, shared.raw + base64.urlsafe_b64decode(page), shared)
        token = getattr(request, "page_token", "")
        # There a foreign token is a place in an order that all tenants share.
        if name == LISTS_CLAIMABLE and token and token not in self.tenant.tokens:
            return
        self._compare(name, request, shared.said, twin.said)
        if page:
            keep(self.tenant.tokens, page, twin.message.next_page_token)
        for after, twins_after in zip(shared.afters, twin.afters, strict=True):
            keep(self.tenant.afters, after, twins_after)

    def _for_twin(self, request: Any) -> bytes:
        """The request with the opaque words of the twin; others' mean nothing to either."""
        request = _copy(request)
        self._translate(request)
        raw: bytes = request.SerializeToString()
        return raw

    def _translate(self, message: Any) -> None:
        for part, value in message.ListFields():
            if part.name == "page_token":
                message.page_token = self.tenant.tokens.get(value, value)
            elif part.name in RESUMES:
                setattr(message, part.name, self.tenant.afters.get(value, value))
        for each in parts_of(message):
            self._translate(each)

    async def _open(self, name: str, request: Any) -> tuple[Listener, Listener]:
        method = METHODS[name]
        shared = await self._shared.listen(method, request.SerializeToString())
        twin = await self._twin.listen(method, self._for_twin(request))
        self._look_through(name, request.SerializeToString(), shared.told.raw, shared.told.ended)
        self._check_streams(name, request, shared, twin)
        return shared, twin

    def _check_streams(self, name: str, request: Any, shared: Listener, twin: Listener) -> None:
        self._look_through(name, b"", shared.told.raw, shared.told.ended)
        self._compare(name, request, shared.told.said, twin.told.said)
        for about, after in shared.told.afters.items():
            keep(self.tenant.afters, after, twin.told.afters[about])

    async def _glance(self, name: str) -> None:
        self._tally.counts["streams"] += 1
        for listener in await self._open(name, self._request(name)):
            listener.close()

    async def _hold(self, name: str) -> None:
        """Begins to wait for what it has nothing of, and others may be given."""
        self._tally.counts["streams held"] += 1
        self._holds += 1
        held = f"{self.tenant.name}-waits-{self._holds}"
        request = self._request(name, held)
        shared, twin = await self._open(name, request)
        self._held.append((name, shared, twin))
        self._waits = request
        self.tenant.held = held

    async def _let_go(self) -> None:
        """Ends the wait by a change of its own; nobody else's may have been told."""
        [(name, shared, twin)] = self._held
        held = self.tenant.held
        member = group_pb2.GroupMember(id=held)
        await self._ask(
            CREATE, group_service_pb2.CreateGroupRequest(group_id=held, members=[member], seal=True)
        )
        await self._ask(REVOKE, worker_service_pb2.RevokeTasksRequest(task_ids=[held]))
        try:
            for listener in (shared, twin):
                await listener.hear_of(held)
        except asyncio.TimeoutError:
            raise Broken(f"{name}: {self.tenant.name} is not told of its own change") from None
        self._check_streams(name, self._waits, shared, twin)
        self.close()
        self.tenant.held = ""

    async def _trespass(self, name: str) -> None:
        """Its own credential in a namespace of somebody else, and in one of nobody."""
        self._tally.counts["trespasses"] += 1
        method = METHODS[name]
        theirs = self.tenant.dice.choice(self.others).tenant.name
        request = self._request(name)
        raw = request.SerializeToString()
        found = []
        for where in (theirs, NOBODY[theirs]):
            side = self._shared.as_if(with_token(self.tenant.token, where))
            if method.server_streaming:
                listener = await side.listen(method, raw)
                listener.close()
                answer = listener.told.ended or Answer(grpc.StatusCode.OK, (), listener.told.raw)
            else:
                answer = await side.ask(method, raw)
            self._look_through(name, raw, answer.raw, answer)
            found.append((answer.code, answer.raw.replace(where.encode(), b"NAMESPACE")))
        if found[0] != found[1] or found[0][0] is not grpc.StatusCode.PERMISSION_DENIED:
            raise Broken(f"{name}: {self.tenant.name} in {theirs} and in nobody's: {found}")

    def _look_through(self, name: str, sent: bytes, raw: bytes, ended: Answer | None) -> None:
        me = self.tenant
        for other in self.others:
            me.learned |= other.tenant.words_in(sent)
            if foreign := other.tenant.words_in(raw) - me.learned:
                raise Broken(f"{name}: {me.name} was sent {other.tenant.name}'s {foreign}")
        if ended is not None and ended.code in BUGS:
            raise Broken(f"{name}: {ended.said}")

    def _compare(self, name: str, request: Message, shared: Any, twin: Any) -> None:
        if shared != twin:
            ours, twins = _parting(repr(shared), repr(twin))
            asked = " ".join(str(request).split())[:SHOWN]
            raise Broken(
                f"{name}: {self.tenant.name} is answered {ours}, its twin {twins}; asked: {asked}"
            )


def _parting(one: str, other: str) -> tuple[str, str]:
    """What stands where two texts part."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    at = max(0, sum(1 for _ in same) - SHOWN // 2)
    return one[at : at + SHOWN], other[at : at + SHOWN]


def _copy(request: Any) -> Any:
    copied = type(request)()
    copied.CopyFrom(request)
    return copied


async def _play(player: Player, steps: int, faults: list[str]) -> None:
    """One tenant's steps, until anybody's law is broken."""
    try:
        for _ in range(steps):
            if faults:
                return
            await player.step()
        await player.finish()
    except Broken as broken:
        faults.append(str(broken))
    finally:
        player.close()


async def _round(directory: Path, plan: Plan, seed: str, steps: int, flags: tuple[str, ...],
                 tally: Tally) -> None:  # fmt: skip
    file = AuthFile(directory)
    tenants = [Tenant(name, random.Random(f"{seed} {name}")) for name in NOBODY]
    for tenant in tenants:
        tenant.token = file.add(tenant.name, None, **{tenant.name: "admin"})
    async with contextlib.AsyncExitStack() as stack:
        shared = stack.enter_context(
            ServerProcess(
                directory, "--auth-file", str(file.path), "--log-level", "error", *flags,
                program=plan.program,
            )
        )  # fmt: skip
        players = []
        for tenant in tenants:
            twin = await stack.enter_async_context(asking(file))
            own = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(shared.address, options=own)
            await stack.enter_async_context(channel)
            metadata = with_token(tenant.token, tenant.name)
            sides = (Side(channel, metadata), Side(twin.channel, metadata))
            players.append(Player(tenant, *sides, tally))
        for player in players:
            player.others = [each for each in players if each is not player]
        await asyncio.gather(
            *(_play(player, -(-steps // len(players)), tally.faults) for player in players)
        )


def run(plan: Plan, seed: int) -> Tally:
    """Runs a plan, a store after another, until it is done or the law is broken."""
    tally = Tally()
    # The twins are in this process, and refuse a lot.
    logging_before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        _rounds(plan, seed, tally)
    finally:
        structlog.configure(**logging_before)
    return tally


def _rounds(plan: Plan, seed: int, tally: Tally) -> None:
    number = 0
    while tally.counts["steps"] < plan.steps and not tally.faults:
        steps = min(plan.round_steps, plan.steps - tally.counts["steps"])
        flags = ("--workers", str(plan.workers[number % len(plan.workers)]))
        with tempfile.TemporaryDirectory(prefix="tenants-") as directory:
            where = Path(directory)
            asyncio.run(_round(where, plan, f"{seed} {number}", steps, flags, tally))
        number += 1


CAMPAIGN = Campaign(
    "tenants",
    "Whatever a tenant asks for, it is answered as if there were no other: no byte, count, "
    "status or event of another's, and what is foreign looks like what is missing.",
    {
        Size.CI: Plan(steps=2_000),
        Size.DEEP: Plan(steps=20_000),
        Size.RELEASE: Plan(steps=2_000_000),
    },
    run,
)

if __name__ == "__main__":
    sys.exit(CAMPAIGN.main())
