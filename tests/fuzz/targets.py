"""What is fuzzed: each takes bytes, and raises where something is a bug.

A refusal with a reason is none. INTERNAL, UNKNOWN, an exception that is not the documented
one, or no answer in time is.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.message import DecodeError

from resultd import _records, _url
from resultd.serialization import Registry
from resultd.v1 import group_pb2, group_service_pb2, state_pb2, stream_pb2, task_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server import config
from resultd_server.ledger.progress import Cursor
from tests.fuzz import credentials, stored
from tests.support import reports
from tests.support.access import WRITE_RACE
from tests.support.in_process import Served, serving
from tests.support.request_fields import METHODS

HANG_S = 5.0
"""An answer comes by then, on a busy machine too. Of CPU it may take less: `bounded.CPU_S`."""

STREAM_S = 0.02
"""How long a stream that has nothing to say is listened to."""

GROUP = "fuzzed"
BY_MEMBER = pb.MEMBER_ORDER_MEMBER

Target = Callable[[bytes], None]
BUGS = frozenset(
    {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.CANCELLED,
    }
)


class Bug(AssertionError):
    """What must not happen."""


async def _last_steps() -> None:
    """What gRPC cancelled when its server stopped has a step or two to go."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), HANG_S)


class Rpcs:
    """Every RPC of a server in this process, over a real socket, with any bytes.

    with Rpcs() as rpcs:
        rpcs.target("resultd.v1.ResultService.GetResult")(b"...")
    """

    def __enter__(self) -> Rpcs:
        self._logging = structlog.get_config()
        # A refusal is no news; a bug's traceback is.
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        self._loop = asyncio.new_event_loop()
        self._serving = serving()
        self._served: Served = self._loop.run_until_complete(self._serving.__aenter__())
        self._loop.run_until_complete(self._fill())
        return self

    async def _fill(self) -> None:
        """A group with two members, one of them done: there is something to page through."""
        members = [group_pb2.GroupMember(id=f"t{number}") for number in range(2)]
        await self._served.groups.CreateGroup(
            group_service_pb2.CreateGroupRequest(group_id=GROUP, members=members)
        )
        await self._served.results.StoreResult(reports.success("t0"))

    def targets(self) -> dict[str, Target]:
        """Every RPC; and what servers hand out, given back to each RPC that takes it."""
        names = {name: self.target(name) for name in METHODS}
        return {**names, "page token": self._page_token, "cursor": self._cursor}

    def _page_token(self, raw: bytes) -> None:
        """Every list, with a page token that is none."""
        token = raw.decode(errors="replace")
        for name, request in (
            ("ResultService.ListResults", pb.ListResultsRequest()),
            ("ResultService.ListResults", pb.ListResultsRequest(group_id=GROUP)),
            ("GroupService.ListGroups", group_service_pb2.ListGroupsRequest()),
            (
                "GroupService.ListGroups",
                group_service_pb2.ListGroupsRequest(claimable=True, claim_scope="s"),
            ),
            ("GroupService.ListGroupMembers", _members_of()),
        ):
            request.page_token = token
            self.target(f"resultd.v1.{name}")(request.SerializeToString())

    def _cursor(self, raw: bytes) -> None:
        """Every stream over a group, resumed where nobody was."""
        groups = [pb.GroupWatch(group_id=GROUP, after=raw)]
        for name, request in (
            ("Iterate", pb.IterateRequest(group_id=GROUP, after=raw)),
            ("Iterate", pb.IterateRequest(group_id=GROUP, after=raw, order=BY_MEMBER)),
            ("Watch", pb.WatchRequest(add_groups=groups, sequence=1)),
        ):
            self.target(f"resultd.v1.ResultService.{name}")(request.SerializeToString())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.run_until_complete(self._serving.__aexit__(kind, error, traceback))
        self._loop.run_until_complete(_last_steps())
        self._loop.close()
        structlog.configure(**self._logging)

    def target(self, name: str) -> Target:
        """One RPC."""
        method = METHODS[name]
        assert method.containing_service is not None
        path = f"/{method.containing_service.full_name}/{method.name}"
        channel = self._served.channel
        answer = message_factory.GetMessageClass(method.output_type)
        if method.client_streaming:
            bidi: Any = channel.stream_stream(path)
            return lambda raw: self._run(name, lambda: self._talk(bidi, raw, answer))
        if method.server_streaming:
            stream: Any = channel.unary_stream(path)
            return lambda raw: self._run(name, lambda: self._listen(stream(raw), answer))
        unary: Any = channel.unary_unary(path)
        return lambda raw: self._run(name, lambda: unary(raw))

    async def _talk(self, start: Callable[[], Any], raw: bytes, answer: Any) -> None:
        """The bytes as one request, and again: what they add is there then."""
        call = start()
        try:
            for _ in range(2):
                await call.write(raw)
            await call.done_writing()
        except asyncio.InvalidStateError:
            await call.code()  # it was refused meanwhile
        except grpc.aio.AioRpcError as error:
            if error.details() != WRITE_RACE:
                raise
            # It was refused before the second: asked again, with nothing after the first.
            call = start()
            await call.write(raw)
        await self._listen(call, answer)

    async def _listen(self, call: Any, answer: Any) -> None:
        """Until it says that it waits, or ends."""
        try:
            while True:
                frame = await asyncio.wait_for(call.read(), STREAM_S)
                if frame is grpc.aio.EOF:
                    code = await call.code()
                    if code is not grpc.StatusCode.OK:
                        raise Bug(code) if code in BUGS else Refused
                    return
                said = answer.FromString(frame).control.kind
                if said in (stream_pb2.CONTROL_KIND_SYNCED, stream_pb2.CONTROL_KIND_HEARTBEAT):
                    return
        except asyncio.TimeoutError:
            return
        finally:
            call.cancel()

    def _run(self, name: str, start: Callable[[], Any]) -> None:
        async def answered() -> None:
            try:
                await asyncio.wait_for(start(), HANG_S)  # a call is made inside the loop
            except grpc.aio.AioRpcError as error:
                if error.code() in BUGS:
                    raise Bug(f"{name}: {error.code().name} {error.details()}") from error
            except Refused:
                return
            except asyncio.TimeoutError:
                raise Bug(f"{name}: no answer in {HANG_S:g} s") from None

        self._loop.run_until_complete(answered())


def _members_of() -> Any:
    return group_service_pb2.ListGroupMembersRequest(group_id=GROUP)


class Refused(Exception):
    """An answer that says no, with a reason."""


def url(raw: bytes) -> None:
    """An address: an Url that hides its token, or ValueError."""
    text = raw.decode(errors="replace")
    try:
        parsed = _url.parse(text)
    except ValueError:
        return
    if parsed.token and f"token={parsed.token}" in f"{parsed!r} {parsed}".replace("token=***", ""):
        raise Bug(f"{parsed!r} shows its token")


def settings_file(raw: bytes) -> None:
    """A configuration: Settings, or ConfigError."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(raw)
        file.flush()
        try:
            config.load({}, {}, Path(file.name))
        except config.ConfigError:
            return


def environment(raw: bytes) -> None:
    """Variables, a line each: Settings, or ConfigError."""
    lines = raw.decode(errors="replace").split("\n")
    pairs = (line.partition("=") for line in lines)
    try:
        config.load({}, {f"RESULTD_{name.upper()}": value for name, _, value in pairs})
    except config.ConfigError:
        return


def record(raw: bytes) -> None:
    """A record as the client reads it: a dict, whatever a worker wrote."""
    try:
        meta = task_pb2.TaskMeta.FromString(raw)
    except DecodeError:
        return
    _records.meta_dict(meta, _REGISTRY)
    _records.result(meta, state_pb2.State.keys()[0], _REGISTRY)


_REGISTRY = Registry()
PLAIN: dict[str, Target] = {
    "url": url,
    "settings file": settings_file,
    "environment": environment,
    "record": record,
    **credentials.TARGETS,
    **stored.TARGETS,
}
SEEDS: dict[str, tuple[bytes, ...]] = {
    "url": (
        b"resultd://127.0.0.1:7758/team?timeout=5&token=secret",
        b"resultds://[::1]:1?ca=a&cert=b&key=c&server_name=d",
        b"resultd+unix:///run/resultd.sock?namespace=team&heartbeat=5",
    ),
    "settings file": (
        b'listen = "127.0.0.1:1"\nmax_db_bytes = "10GiB"\nworkers = 2\ndrain_s = 1.5\n',
        b'engine = "memory"\nreflection = false\nlisten = "unix:x"\n',
    ),
    "environment": (b"DATA=x\nLISTEN=[::1]:5\nMAX_DB_BYTES=1.5T", b"WORKERS=3\nDRAIN_S=inf"),
    "record": (),
    **credentials.seeds(),
    **stored.seeds(),
    "page token": (b"dDE=", b"AAAAAAAAAAE=", b""),
    "cursor": (Cursor(1, 1, 1, "t0").encode(), Cursor(2, 1, 1, "t0").encode(), b""),
}
