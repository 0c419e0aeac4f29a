"""Getting in over real connections: TLS, client certificates, both exchanged under load."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from resultd.v1 import result_service_pb2 as pb
from resultd_server.access import reload
from resultd_server.app import App
from resultd_server.config import ConfigError, Settings, load
from resultd_server.entrance import Entrance
from tests.support import reports
from tests.support.access import (
    AuthFile,
    asking,
    channel_credentials,
    put,
    self_signed,
    utc,
    with_token,
)
from tests.support.frames import Frames
from tests.support.in_process import until
from tests.support.refusals import Refusal, taken_apart
from tests.support.stubs import Stubs

READ = pb.GetResultRequest(task_id="t")
FRESH = (("grpc.use_local_subchannel_pool", 1),)
"""A channel with connections of its own."""


@pytest.fixture
def ca() -> trustme.CA:
    """Who signs."""
    return trustme.CA()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at more often than a server would."""
    monkeypatch.setattr(reload, "PERIOD_S", 0.02)
    monkeypatch.setattr(reload, "SETTLED_S", 0.01)


def issued(ca: trustme.CA, name: str = "server") -> trustme.LeafCert:
    """A certificate for this host, with a common name to tell it by."""
    return ca.issue_cert("localhost", "127.0.0.1", common_name=name)


@asynccontextmanager
async def running(**said: Any) -> AsyncIterator[tuple[App, str]]:
    """A server in this process, and its address."""
    app = App(Settings(**{"engine": "memory", "listen": "127.0.0.1:0", **said}))
    address = await app.start()
    try:
        yield app, address
    finally:
        await app.stop()


@asynccontextmanager
async def connected(address: str, credentials: grpc.ChannelCredentials) -> AsyncIterator[Stubs]:
    """Stubs over a connection of their own."""
    async with grpc.aio.secure_channel(address, credentials, options=FRESH) as channel:
        yield Stubs(channel)


async def refused(frames: Frames) -> Refusal:
    """What a stream ends with, whatever it said before."""
    try:
        while True:
            await frames.next()
    except grpc.aio.AioRpcError as error:
        return taken_apart(error)


async def refusal_of_reading(results: Any, token: str) -> Refusal:
    """Reads until that is refused."""
    try:
        while True:
            await results.GetResult(READ, metadata=with_token(token))
    except grpc.aio.AioRpcError as error:
        return taken_apart(error)


async def until_shown(address: str, ca: trustme.CA, name: str) -> None:
    """Until new connections are shown the certificate of that name."""
    while await shown(address, ca) != name:  # noqa: ASYNC110  another process would ask, too
        await asyncio.sleep(0.02)


async def shown(address: str, ca: trustme.CA) -> str:
    """The common name of the certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    ca.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        found = x509.load_der_x509_certificate(der)
        (name,) = found.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(name.value)
    finally:
        writer.close()


async def test_certificates_are_exchanged_under_load_without_a_failed_call(
    tmp_path: Path, ca: trustme.CA
) -> None:
    """While calls are made on old and new connections the certificate changes three times: no
    call fails, the old connections live on, and new ones are shown the new certificate.
    """
    pair = put(issued(ca, "number 0"), tmp_path)
    calls = 0
    over = False

    async def call_on(address: str, *, reconnect: bool) -> None:
        nonlocal calls
        while not over:
            async with connected(address, channel_credentials(ca)) as stubs:
                while not over:
                    await stubs.results.GetResult(READ, timeout=10)
                    calls += 1
                    if reconnect:
                        break

    async with running(tls_cert=pair.chain, tls_key=pair.key) as (_, address):
        callers = [asyncio.create_task(call_on(address, reconnect=n > 1)) for n in range(4)]
        for number in range(1, 4):
            put(issued(ca, f"number {number}"), tmp_path)
            await until_shown(address, ca, f"number {number}")
            wanted = calls + 20
            await until(lambda: calls > wanted)  # noqa: B023  it is asked before it changes
            assert not any(caller.done() for caller in callers)
        over = True
        await asyncio.gather(*callers)


async def test_what_cannot_be_used_leaves_the_old_certificate_in_force(
    tmp_path: Path, ca: trustme.CA, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that is not the certificate's, or no PEM at all, is logged once and changes nothing;
    the next good pair is taken.
    """
    pair = put(issued(ca, "good"), tmp_path)
    async with running(tls_cert=pair.chain, tls_key=pair.key) as (_, address):
        for spoiled in (issued(ca).private_key_pem.bytes(), b"nothing of the kind"):
            pair.key.write_bytes(spoiled)
            said = ""
            while "not reloaded" not in said:
                await asyncio.sleep(0.01)
                said = capsys.readouterr().out
            assert await shown(address, ca) == "good"
        assert said.count("not reloaded") == 1
        put(issued(ca, "better"), tmp_path)
        await until_shown(address, ca, "better")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65_537, 2048),
        lambda: rsa.generate_private_key(65_537, 4096),
    ],
    ids=["P-256", "P-384", "RSA 2048", "RSA 4096"],
)
async def test_a_kind_of_key_that_is_taken_is_one_that_clients_take(
    tmp_path: Path, make: Callable[[], Any]
) -> None:
    """gRPC's own clients connect to every kind that the server does not refuse."""
    chain, key = self_signed(make())
    (tmp_path / "chain").write_bytes(chain)
    (tmp_path / "key").write_bytes(key)
    settings = {"tls_cert": tmp_path / "chain", "tls_key": tmp_path / "key"}
    async with (
        running(**settings, listen="localhost:0") as (_, address),
        connected(address, grpc.ssl_channel_credentials(chain)) as stubs,
    ):
        await stubs.results.GetResult(READ, timeout=10)


async def test_a_certificate_that_came_too_early_is_taken_in_its_time(
    tmp_path: Path, ca: trustme.CA, capsys: pytest.CaptureFixture[str]
) -> None:
    """One whose signer's clock is ahead is refused, and used as soon as it is valid; nobody has
    to touch the file again.
    """
    pair = put(issued(ca, "old"), tmp_path)
    async with running(tls_cert=pair.chain, tls_key=pair.key) as (_, address):
        begins = utc(2)
        early = ca.issue_cert("localhost", "127.0.0.1", common_name="new", not_before=begins)
        put(early, tmp_path)
        said = ""
        while "is not valid before" not in said:
            await asyncio.sleep(0.01)
            said += capsys.readouterr().out
        assert utc(0) < begins
        assert await shown(address, ca) == "old"
        await until_shown(address, ca, "new")
    assert (said + capsys.readouterr().out).count("not reloaded") == 1


async def test_without_a_certificate_of_theirs_nobody_gets_in(
    tmp_path: Path, ca: trustme.CA
) -> None:
    """With --tls-client-ca a client needs a certificate of that authority; no other will do."""
    pair = put(issued(ca), tmp_path)
    clients, strangers = trustme.CA(), trustme.CA()
    clients.cert_pem.write_to_path(tmp_path / "clients.pem")
    settings = {"tls_cert": pair.chain, "tls_key": pair.key}
    async with running(**settings, tls_client_ca=tmp_path / "clients.pem") as (_, address):
        known = clients.issue_cert("worker.example.org")
        async with connected(address, channel_credentials(ca, known)) as stubs:
            await stubs.results.GetResult(READ, timeout=10)
        for client in (None, strangers.issue_cert("worker.example.org")):
            async with connected(address, channel_credentials(ca, client)) as stubs:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stubs.results.GetResult(READ, timeout=10)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("identity", "common_name", "lets_in"),
    [
        ("dns:worker.example.org", "x", True),
        ("email:w@example.org", "x", True),
        ("cn:worker 1", "worker 1", True),
        ("cn:worker.example.org", "x", False),
        ("dns:worker 1", "worker 1", False),
    ],
)
async def test_a_client_certificate_is_somebody(
    tmp_path: Path, ca: trustme.CA, identity: str, common_name: str, lets_in: bool
) -> None:
    """A certificate's name, of the kind the auth file says, gives its roles; another kind of the
    same name does not. A token that comes with the call counts instead.
    """
    pair = put(issued(ca), tmp_path)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    file = AuthFile(tmp_path)
    reader = file.add("reader", everywhere="reader")
    said = f'[[certificates]]\nname = "w"\nidentity = "{identity}"\nroles = {{ mine = "worker" }}'
    file.say(said)
    client = ca.issue_cert("worker.example.org", "w@example.org", common_name=common_name)
    store = reports.success("t")
    async with (
        running(
            tls_cert=pair.chain,
            tls_key=pair.key,
            tls_client_ca=tmp_path / "ca.pem",
            auth_file=file.path,
        ) as (_, address),
        connected(address, channel_credentials(ca, client)) as stubs,
    ):
        mine = (("resultd-namespace", "mine"),)
        if lets_in:
            await stubs.results.StoreResult(store, metadata=mine)
        expected = "NAMESPACE_DENIED" if lets_in else "CREDENTIAL_INVALID"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.results.StoreResult(store)
        assert taken_apart(caught.value).reason == expected
        await stubs.results.GetResult(READ, metadata=with_token(reader, "mine"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.results.StoreResult(store, metadata=with_token(reader, "mine"))
        assert taken_apart(caught.value).reason == "ROLE_INSUFFICIENT"


async def test_a_certificate_that_runs_out_ends_its_streams(tmp_path: Path, ca: trustme.CA) -> None:
    """A connection outlives its certificate, its streams and calls do not."""
    pair = put(issued(ca), tmp_path)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    file = AuthFile(tmp_path)
    file.say('[[certificates]]\nname = "w"\nidentity = "cn:w"\nroles = { "*" = "worker" }')
    ends = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=4)
    client = ca.issue_cert("w.example.org", common_name="w", not_after=ends)
    async with (
        running(
            tls_cert=pair.chain,
            tls_key=pair.key,
            tls_client_ca=tmp_path / "ca.pem",
            auth_file=file.path,
        ) as (_, address),
        connected(address, channel_credentials(ca, client)) as stubs,
    ):
        frames = Frames(stubs.results.WaitFor(pb.WaitForRequest(task_ids=["t"])))
        refusal = await refused(frames)
        assert refusal.reason == "CREDENTIAL_EXPIRED"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stubs.results.GetResult(READ)
        assert taken_apart(caught.value).reason == "CREDENTIAL_EXPIRED"


STREAMS: dict[str, Any] = {
    "WaitFor": pb.WaitForRequest(task_ids=["t"]),
    "Iterate": pb.IterateRequest(group_id="g"),
    "Watch": pb.WatchRequest(add_task_ids=["t"], sequence=1),
}


@pytest.mark.parametrize("kind", STREAMS)
async def test_a_revoked_token_ends_its_streams(tmp_path: Path, kind: str) -> None:
    """A stream whose token is taken away ends UNAUTHENTICATED; others go on, and are told."""
    file = AuthFile(tmp_path)
    revoked, stays = file.add("a", everywhere="reader"), file.add("b", everywhere="reader")
    async with asking(file) as served:
        opened = []
        for token in (revoked, stays):
            method: Any = getattr(served.results, kind)
            if kind == "Watch":
                call = method(metadata=with_token(token))
                await call.write(STREAMS[kind])
            else:
                call = method(STREAMS[kind], metadata=with_token(token))
            frames = Frames(call)
            await frames.next()
            opened.append(frames)
        file.revoke("a")
        refusal = await refused(opened[0])
        assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_INVALID")
        assert served.app.streams.streams == 1
        opened[1].call.cancel()
        await until(lambda: served.app.streams.streams == 0)


async def test_a_role_that_is_taken_away_ends_streams_too(tmp_path: Path) -> None:
    """A token that stays and loses the namespace: its streams there end PERMISSION_DENIED."""
    file = AuthFile(tmp_path)
    token = file.add("a", mine="reader", theirs="reader")
    async with asking(file) as served:
        call = served.results.WaitFor(
            pb.WaitForRequest(task_ids=["t"]), metadata=with_token(token, "mine")
        )
        frames = Frames(call)
        await frames.next()
        text = file.path.read_text()
        file.path.write_text(text.replace('"mine"', '"yours"'))
        refusal = await refused(frames)
        assert refusal.reason == "NAMESPACE_DENIED"


async def test_a_token_that_expires_ends_its_streams(tmp_path: Path) -> None:
    """The end of a token's time is the end of its streams, with nobody touching the file."""
    file = AuthFile(tmp_path)
    token = file.add("a", utc(2), everywhere="reader")
    async with asking(file) as served:
        call = served.results.WaitFor(pb.WaitForRequest(task_ids=["t"]), metadata=with_token(token))
        frames = Frames(call)
        refusal = await refused(frames)
        assert refusal.reason == "CREDENTIAL_EXPIRED"


async def test_a_damaged_auth_file_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An auth file that cannot be read or makes no sense is logged; those in it stay let in."""
    file = AuthFile(tmp_path)
    token = file.add("a", everywhere="reader")
    async with asking(file) as served:
        results = served.results
        for rest in ("[[tokens", "[[tokens]]\nname = 'x'", "[jwt]\nalgorithms = ['none']"):
            file.say(rest)
            said = ""
            while "not reloaded" not in said:
                await asyncio.sleep(0.01)
                said = capsys.readouterr().out
            assert "error" in said
            await results.GetResult(READ, metadata=with_token(token))
        file.rest = ""
        file.revoke("a")
        assert (await refusal_of_reading(results, token)).reason == "CREDENTIAL_INVALID"


def test_files_that_are_not_there_are_said(tmp_path: Path) -> None:
    """What the settings name is read before anything starts."""
    settings = load({"engine": "memory", "auth_file": tmp_path / "none.toml"}, {})
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        Entrance(settings).open()
    settings = load({"engine": "memory", "tls_cert": tmp_path / "c", "tls_key": tmp_path / "k"}, {})
    with pytest.raises(ConfigError, match=r"c cannot be read: No such file"):
        Entrance(settings).open()


def test_certificates_in_the_auth_file_want_a_server_that_asks_for_them(tmp_path: Path) -> None:
    """Without --tls-client-ca no client shows one: whoever wrote them is told at the start."""
    file = AuthFile(tmp_path)
    file.say('[[certificates]]\nname = "w"\nidentity = "cn:w"\nroles = { "*" = "worker" }')
    settings = load({"engine": "memory", "auth_file": file.path}, {})
    with pytest.raises(ConfigError, match="--tls-client-ca"):
        Entrance(settings).open()


@pytest.mark.parametrize(
    ("version", "spoken"),
    [
        (ssl.TLSVersion.TLSv1_1, None),
        (ssl.TLSVersion.TLSv1_2, ("TLSv1.2", "h2")),
        (ssl.TLSVersion.TLSv1_3, ("TLSv1.3", "h2")),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_is_of_this_decade(
    tmp_path: Path, ca: trustme.CA, version: ssl.TLSVersion, spoken: tuple[str, str] | None
) -> None:
    """TLS 1.2 and 1.3 are spoken, over HTTP/2; what is older is refused by the server."""
    context = ssl.create_default_context()
    ca.configure_trust(context)
    context.set_alpn_protocols(["http/1.1", "h2"])
    context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is not we who refuse
    context.minimum_version = context.maximum_version = version
    pair = put(issued(ca), tmp_path)
    async with running(tls_cert=pair.chain, tls_key=pair.key) as (_, address):
        host, _, port = address.rpartition(":")
        try:
            _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        except OSError:
            assert spoken is None
            return
        found = writer.get_extra_info("ssl_object")
        assert (found.version(), found.selected_alpn_protocol()) == spoken
        writer.close()


@pytest.mark.parametrize("switched_on", [True, False])
async def test_health_asks_nobody_and_reflection_follows_its_switch(
    tmp_path: Path, switched_on: bool
) -> None:
    """Probes have no credential; what the protocol is, is told where that is switched on."""
    async with asking(AuthFile(tmp_path), reflection=switched_on) as served:
        health: Any = health_pb2_grpc.HealthStub(served.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub: Any = reflection_pb2_grpc.ServerReflectionStub  # its types know sync channels only
        reflection = stub(served.channel)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        call = reflection.ServerReflectionInfo(asked, timeout=10)
        if switched_on:
            listed = await call.read()
            assert listed.list_services_response.service
            call.cancel()
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
