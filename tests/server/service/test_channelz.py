"""channelz is off; on, it tells an admin of everything of the connections, and nobody else."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

import grpc
import pytest

from resultd.v1 import result_service_pb2 as pb
from resultd_server.config import ConfigError, load
from tests.support.access import AuthFile, asking, utc, with_token
from tests.support.in_process import Served, serving
from tests.support.raw_calls import DEADLINE_S, Metadata
from tests.support.refusals import taken_apart

pytest.importorskip("grpc_channelz", reason="grpcio-channelz is in the [channelz] extra")

from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc  # behind the skip

from resultd_server.service import channelz

RPCS = [method.name for method in channelz.SERVICE.methods]


async def end(served: Served, name: str, metadata: Metadata = ()) -> tuple[str, str]:
    """Code and reason of an RPC with an empty request; OK has no reason."""
    call: Any = served.channel.unary_unary(f"/{channelz.SERVICE.full_name}/{name}")
    try:
        await call(b"", metadata=metadata, timeout=DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND):
            return error.code().name, ""
        refusal = taken_apart(error)
        return refusal.code, refusal.reason
    return "OK", ""


def stub(served: Served) -> Any:
    """Its types know sync channels only."""
    made: Any = channelz_pb2_grpc.ChannelzStub
    return made(served.channel)


async def found(served: Served) -> tuple[int, Any]:
    """The server's id, and one of its sockets: there may be others in this process."""
    asked = stub(served)
    told = await asked.GetServers(channelz_pb2.GetServersRequest())
    assert told.end
    for server in told.server:
        sockets = await asked.GetServerSockets(
            channelz_pb2.GetServerSocketsRequest(server_id=server.ref.server_id)
        )
        for ref in sockets.socket_ref:
            request = channelz_pb2.GetSocketRequest(socket_id=ref.socket_id)
            socket = (await asked.GetSocket(request)).socket
            if served.address.endswith(f":{socket.local.tcpip_address.port}"):
                return server.ref.server_id, socket
    raise AssertionError(f"no server at {served.address} is told of: {told}")


@pytest.mark.parametrize("said", [{}, {"admin": "127.0.0.1:0"}])
async def test_it_is_off_unless_switched_on(said: dict[str, Any]) -> None:
    """No RPC of it is served by default, whether or not methods are counted."""
    async with serving(**said) as served:
        assert {await end(served, name) for name in RPCS} == {("UNIMPLEMENTED", "")}


async def test_it_tells_of_connections_and_calls() -> None:
    """Servers, their sockets, and one socket with its calls; what is not there is NOT_FOUND."""
    async with serving(channelz=True) as served:
        await served.results.GetResult(pb.GetResultRequest(task_id="t"))
        _, socket = await found(served)
        assert socket.data.streams_started >= 3
        assert {name: await end(served, name) for name in RPCS} == {
            "GetTopChannels": ("OK", ""),
            "GetServers": ("OK", ""),
            "GetServer": ("NOT_FOUND", ""),
            "GetServerSockets": ("NOT_FOUND", ""),
            "GetChannel": ("NOT_FOUND", ""),
            "GetSubchannel": ("NOT_FOUND", ""),
            "GetSocket": ("NOT_FOUND", ""),
        }


async def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sockets are asked for, so many are told at most; the next are asked for."""
    monkeypatch.setattr(channelz, "SOCKETS_MAX", 2)
    async with serving(channelz=True) as served:
        own = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(served.address, options=own) for _ in range(3)]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        asked = stub(served)
        server_id, _ = await found(served)
        for many in (0, 3, 2**31):
            request = channelz_pb2.GetServerSocketsRequest(server_id=server_id, max_results=many)
            told = await asked.GetServerSockets(request)
            assert (len(told.socket_ref), told.end) == (2, False)
        request.start_socket_id = told.socket_ref[-1].socket_id + 1
        rest = await asked.GetServerSockets(request)
        assert rest.end
        assert len(rest.socket_ref) == 2  # four connections: three, and the test's own
        for channel in channels:
            await channel.close()


async def test_only_an_admin_of_every_namespace_is_told(tmp_path: Path) -> None:
    """Every RPC against every kind of credential."""
    file = AuthFile(tmp_path)
    kinds: dict[str, tuple[Metadata, tuple[str, str]]] = {
        "none": ((), ("UNAUTHENTICATED", "CREDENTIAL_MISSING")),
        "unknown": (with_token("rsd_unknown"), ("UNAUTHENTICATED", "CREDENTIAL_INVALID")),
        "expired": (
            with_token(file.add("gone", utc(-1), everywhere="admin")),
            ("UNAUTHENTICATED", "CREDENTIAL_EXPIRED"),
        ),
        "a tenant's admin": (
            with_token(file.add("tenant", mine="admin"), "mine"),
            ("PERMISSION_DENIED", "NAMESPACE_DENIED"),
        ),
        "reader everywhere, admin of one": (
            with_token(file.add("both", everywhere="reader", mine="admin"), "mine"),
            ("PERMISSION_DENIED", "ROLE_INSUFFICIENT"),
        ),
        "worker everywhere": (
            with_token(file.add("worker", everywhere="worker")),
            ("PERMISSION_DENIED", "ROLE_INSUFFICIENT"),
        ),
    }
    operator = with_token(file.add("operator", everywhere="admin"))
    async with asking(file, channelz=True) as served:
        wrong = {
            (name, kind): said
            for name in RPCS
            for kind, (metadata, expected) in kinds.items()
            if (said := await end(served, name, metadata)) != expected
        }
        assert wrong == {}
        assert {(await end(served, name, operator))[0] for name in RPCS} == {"OK", "NOT_FOUND"}


async def test_its_bad_input_is_refused() -> None:
    """Bytes that are no message are refused as those of our own RPCs are."""
    async with serving(channelz=True) as served:
        call: Any = served.channel.unary_unary(f"/{channelz.SERVICE.full_name}/GetServer")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff", timeout=DEADLINE_S)
        assert taken_apart(caught.value).code == "INVALID_ARGUMENT"


def test_without_its_library_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched on where it is not installed: a sentence, before anything starts."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'resultd\[channelz\]'"):
        load({"engine": "memory", "channelz": True}, {})
