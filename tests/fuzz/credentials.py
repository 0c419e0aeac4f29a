"""Who calls, from bytes: tokens, JWTs, certificates; and the files that say whom to trust."""

from __future__ import annotations

import functools
import json
import tempfile
import warnings
from pathlib import Path

from cryptography.utils import CryptographyDeprecationWarning
from structlog.testing import capture_logs

from resultd_server.access import jwts, tokens
from resultd_server.access.authority import Authority
from resultd_server.config import ConfigError
from resultd_server.errors import CredentialExpired, CredentialInvalid
from resultd_server.tls import Certificates, Pem
from tests.support.jwts import Issuer

ALGORITHMS = ("ES256", "EdDSA", "RS256")
ENTRY = f"""
[[tokens]]
name = "ci"
sha256 = "{tokens.hash_of("rsd_known")}"
roles = {{ "*" = "reader", prod = "worker" }}
expires = 2099-01-01T00:00:00Z

[[certificates]]
name = "mesh"
identity = "uri:spiffe://example.org/a"
roles = {{ prod = "admin" }}
"""


@functools.cache
def issuer() -> Issuer:
    """Whose JWTs are taken."""
    return Issuer("ES256")


@functools.cache
def _authority() -> Authority:
    """Tokens, certificates and JWTs."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        file, key = Path(directory, "auth.toml"), Path(directory, "key.pem")
        issuer().write(key)
        file.write_text(ENTRY + issuer().section(f'public_key_file = "{key}"'))
        found = Authority(file)
        found.take(found.read())
        return found


def bearer(raw: bytes) -> None:
    """A token or a JWT: somebody's, or refused."""
    try:
        with capture_logs():  # each has its line
            _authority().bearer(raw.decode(errors="replace"))
    except (CredentialInvalid, CredentialExpired):
        return


def certificate(raw: bytes) -> None:
    """A client's certificate, which TLS has checked: somebody, or CREDENTIAL_INVALID."""
    try:
        _authority().certificate(raw)
    except CredentialInvalid:
        return


def server_certificate(raw: bytes) -> None:
    """The server's own, from its file: usable, or ConfigError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        try:
            Certificates(Path("server.pem"), Path("server.key")).take(Pem(raw, _own()[1], None))
        except ConfigError:
            return


def auth_file(raw: bytes) -> None:
    """The file with all credentials: what it says, or ConfigError."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(raw)
        file.flush()
        found = Authority(Path(file.name))
        try:
            found.take(found.read())
        except ConfigError:
            return


def key_file(raw: bytes) -> None:
    """A key, a key set, a secret: usable, or ValueError with the remedy."""
    for read, algorithms in (
        (jwts.public_key, ALGORITHMS),
        (jwts.key_set, ALGORITHMS),
        (jwts.secret, ("HS256",)),
    ):
        try:
            read(raw, algorithms)
        except ValueError:
            continue


TARGETS = {
    "bearer": bearer,
    "certificate": certificate,
    "server certificate": server_certificate,
    "auth file": auth_file,
    "key file": key_file,
}


def seeds() -> dict[str, tuple[bytes, ...]]:
    """Where each begins."""
    known = issuer()
    key_set = json.dumps({"keys": [known.jwk(kid="a"), known.jwk(kid="b", alg="ES256")]})
    return {
        "bearer": (known.token(headers={"kid": "a"}).encode(), b"rsd_known", b"a.b.c"),
        "certificate": (_own()[0],),
        "server certificate": (_own()[0],),
        "auth file": (ENTRY.encode(), ENTRY.encode() + known.section('jwks_file = "k"').encode()),
        "key file": (known.pem, key_set.encode(), b"A" * 64),
    }


@functools.cache
def _own() -> tuple[bytes, bytes]:
    """A certificate and its key."""
    import trustme  # here: making keys takes a while, and most runs want others

    made = trustme.CA().issue_cert("a.example.org", common_name="a")
    return made.cert_chain_pems[0].bytes(), made.private_key_pem.bytes()
