"""Who calls, from bytes: tokens, JWTs, certificates; and the files that say whom to trust."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from resultd_server.access import jwts, tokens
from resultd_server.access.authority import Authority
from resultd_server.config import ConfigError
from resultd_server.errors import CredentialExpired, CredentialInvalid
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
        return Authority(file)


def bearer(raw: bytes) -> None:
    """A token or a JWT: nobody's, as nobody can have guessed one."""
    try:
        _authority().bearer(raw.decode(errors="replace"))
    except (CredentialInvalid, CredentialExpired):
        return


def certificate(raw: bytes) -> None:
    """A client's certificate, which TLS has checked: somebody, or CREDENTIAL_INVALID."""
    try:
        _authority().certificate(raw)
    except CredentialInvalid:
        return


def auth_file(raw: bytes) -> None:
    """The file with all credentials: what it says, or ConfigError."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(raw)
        file.flush()
        try:
            Authority(Path(file.name))
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
    "auth file": auth_file,
    "key file": key_file,
}


def seeds() -> dict[str, tuple[bytes, ...]]:
    """Where each begins."""
    known = issuer()
    key_set = json.dumps({"keys": [known.jwk(kid="a"), known.jwk(kid="b", alg="ES256")]})
    return {
        "bearer": (known.token(headers={"kid": "a"}).encode(), b"rsd_known", b"a.b.c"),
        "certificate": (_self_signed(),),
        "auth file": (ENTRY.encode(), ENTRY.encode() + known.section('jwks_file = "k"').encode()),
        "key file": (known.pem, key_set.encode(), b"A" * 64),
    }


def _self_signed() -> bytes:
    import trustme  # here: making keys takes a while, and most runs want others

    made = trustme.CA().issue_cert("a.example.org", common_name="a")
    return made.cert_chain_pems[0].bytes()
