"""Credentials for tests: an auth file and its tokens, certificates, and calls that carry them."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf.descriptor import MethodDescriptor

from resultd_server.access import tokens
from tests.support.in_process import Served, serving
from tests.support.raw_calls import Metadata
from tests.support.refusals import Refusal, taken_apart

ANSWER_S = 20.0
WRITE_RACE = "Internal error from Core"
"""What grpc.aio's client makes of a status that arrives while it writes: it has lost it."""


class AuthFile:
    """An auth file that is written anew whenever an entry comes or goes."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "auth.toml"
        self.rest = ""
        self._entries: dict[str, str] = {}
        self._write()

    def add(self, name: str, expires: datetime.datetime | None = None, **roles: str) -> str:
        """A new token; `everywhere` is a role in every namespace."""
        token = tokens.new()
        where = {"*" if key == "everywhere" else key: role for key, role in roles.items()}
        said = ", ".join(f"{json.dumps(key)} = {json.dumps(role)}" for key, role in where.items())
        lines = ["[[tokens]]", f'name = "{name}"', f'sha256 = "{tokens.hash_of(token)}"']
        lines.append(f"roles = {{ {said} }}")
        if expires is not None:
            lines.append(f"expires = {expires:%Y-%m-%dT%H:%M:%SZ}")
        self._entries[name] = "\n".join(lines)
        self._write()
        return token

    def revoke(self, name: str) -> None:
        """Takes an entry away."""
        del self._entries[name]
        self._write()

    def say(self, rest: str) -> None:
        """Puts something at the end of the file."""
        self.rest = rest
        self._write()

    def _write(self) -> None:
        self.path.write_text("\n\n".join([*self._entries.values(), self.rest]))


def with_token(token: str, namespace: str = "") -> Metadata:
    """What a call carries."""
    said: Metadata = (("authorization", f"Bearer {token}"),)
    return (*said, ("resultd-namespace", namespace)) if namespace else said


def utc(seconds: float) -> datetime.datetime:
    """A time from now."""
    return datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=seconds)


class Pair(NamedTuple):
    """A certificate's files."""

    chain: Path
    key: Path


def put(certificate: trustme.LeafCert, directory: Path, name: str = "server") -> Pair:
    """Writes a certificate and its key, each at one stroke."""
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    for path, content in ((pair.chain, chain), (pair.key, certificate.private_key_pem.bytes())):
        fresh = path.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(path)
    return pair


def self_signed(key: Any) -> tuple[bytes, bytes]:
    """A certificate for localhost that goes with a private key, and that key, in PEM."""
    nobody = x509.Name([])
    signs = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else SHA256()
    made = (
        x509.CertificateBuilder(nobody, nobody, key.public_key(), 1, utc(-60), utc(3600))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
        .sign(key, signs)
    )
    raw = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM), raw


def channel_credentials(
    ca: trustme.CA, client: trustme.LeafCert | None = None
) -> grpc.ChannelCredentials:
    """What a client trusts, and the certificate it shows."""
    root = ca.cert_pem.bytes()
    if client is None:
        return grpc.ssl_channel_credentials(root)
    chain = b"".join(blob.bytes() for blob in client.cert_chain_pems)
    return grpc.ssl_channel_credentials(root, client.private_key_pem.bytes(), chain)


@asynccontextmanager
async def asking(file: AuthFile, **settings: Any) -> AsyncIterator[Served]:
    """A server in this process that goes by an auth file."""
    async with serving(auth_file=file.path, **settings) as served:
        yield served


async def answer(
    channel: grpc.aio.Channel, method: MethodDescriptor, raw: bytes, metadata: Metadata
) -> bytes | Refusal:
    """The first answer of a call with one request, or its refusal."""
    while True:
        try:
            return await _answer(channel, method, raw, metadata)
        except grpc.aio.AioRpcError as error:
            if not (method.client_streaming and error.details() == WRITE_RACE):
                return taken_apart(error)


async def _answer(
    channel: grpc.aio.Channel, method: MethodDescriptor, raw: bytes, metadata: Metadata
) -> bytes:
    assert method.containing_service is not None
    path = f"/{method.containing_service.full_name}/{method.name}"
    if not method.server_streaming:
        unary: Any = channel.unary_unary(path)
        found: bytes = await unary(raw, metadata=metadata, timeout=ANSWER_S)
        return found
    call = _stream(channel, method, path, raw, metadata)
    try:
        return await asyncio.wait_for(_first(call, raw), ANSWER_S)
    finally:
        call.cancel()


def _stream(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    path: str,
    raw: bytes,
    metadata: Metadata,
) -> Any:
    if method.client_streaming:
        bidi: Any = channel.stream_stream(path)
        return bidi(metadata=metadata)
    streaming: Any = channel.unary_stream(path)
    return streaming(raw, metadata=metadata)


async def _first(call: Any, raw: bytes) -> bytes:
    if hasattr(call, "write"):
        await call.write(raw)
    frame = await call.read()
    return frame if isinstance(frame, bytes) else b""
