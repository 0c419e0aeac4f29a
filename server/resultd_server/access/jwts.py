"""JSON web tokens: signed by somebody else, checked here with a key from a file.

Which algorithms count is said by the operator, never by the token; keys that are public are
used for signatures alone, never as the shared secret of an HMAC; nothing is fetched.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import jwt
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from resultd_server.access.roles import Principal, roles_of
from resultd_server.errors import CredentialExpired, CredentialInvalid

HMAC = ("HS256", "HS384", "HS512")
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
_EDWARDS = ("EdDSA",)
SIGNATURES = (*_RSA, *_CURVES, *_EDWARDS)
LEEWAY_S_MAX = 60
RSA_BITS_MIN = 2048
_SECRET_BYTES_MIN = {"HS256": 32, "HS384": 48, "HS512": 64}
_HEADER_BYTES_MAX = 1024
_ALWAYS = ["exp", "iss", "aud", "sub"]

_UNSOUND = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)
"""What reading a token that means harm, or was signed over nonsense, may raise."""

_NO_KEY = (*_UNSOUND, UnsupportedAlgorithm, NotImplementedError)
"""What making a key of an entry that says nonsense may raise."""

log = structlog.get_logger("resultd.access")

Key = Any
"""A public key of cryptography's, or the bytes of a shared secret."""


class Verifier:
    """Checks tokens of one issuer for one audience."""

    def __init__(
        self,
        keys: Mapping[str | None, tuple[Key, tuple[str, ...]]],
        *,
        issuer: str,
        audience: str,
        claim: str,
        leeway_s: float,
    ) -> None:
        """`keys`: by key id (None where the one key has none), with its algorithms."""
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._claim = claim
        self._leeway_s = leeway_s

    def check(self, token: str) -> Principal:
        """Whose token it is. Raises CredentialInvalid, CredentialExpired."""
        try:
            key, algorithms = self._key_for(token)
            claims = jwt.decode(
                token,
                key,
                algorithms=list(algorithms),
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway_s,
                options={"require": _ALWAYS},
            )
            # A principal is somebody: what has no name is in no log.
            if not claims["sub"]:
                raise ValueError("sub is empty")
            roles = roles_of(claims.get(self._claim))
            expires_s = float(claims["exp"]) + self._leeway_s
        except jwt.ExpiredSignatureError:
            raise CredentialExpired from None
        except _UNSOUND as error:
            # By its class: the message of some repeats parts of the token.
            log.info("JWT refused", why=type(error).__name__)
            raise CredentialInvalid from None
        return Principal(str(claims["sub"]), roles, expires_s)

    def _key_for(self, token: str) -> tuple[Key, tuple[str, ...]]:
        if len(token.partition(".")[0]) > _HEADER_BYTES_MAX:
            raise ValueError("header too long")  # it is parsed before anything is checked
        key_id = jwt.get_unverified_header(token).get("kid")
        found = self._keys.get(key_id)
        if found is None and len(self._keys) == 1 and (key_id is None or None in self._keys):
            (found,) = self._keys.values()
        if found is None:
            raise ValueError("key not known")
        return found


def public_key(pem: bytes, algorithms: tuple[str, ...]) -> dict[str | None, Any]:
    """The keys of a PEM file. Raises ValueError, a clause with the remedy."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is no public key in PEM: write '-----BEGIN PUBLIC KEY-----'") from None
    return {None: (key, _usable(key, algorithms))}


def key_set(text: bytes, algorithms: tuple[str, ...]) -> dict[str | None, Any]:
    """The keys of a JWKS file. Raises ValueError, a clause with the remedy."""
    try:
        said = json.loads(text)["keys"]
        entries = [dict(entry) for entry in said]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('is no key set: write {"keys": [...]}') from None
    found: dict[str | None, Any] = {}
    for entry in entries:
        key_id = entry.get("kid")
        if entry.get("use", "sig") != "sig":
            continue  # for encryption
        if not isinstance(key_id, str | None):
            raise ValueError(f"has a key whose id {key_id!r} is no text: write it in quotes")
        if entry.get("kty") == "oct" or "d" in entry:
            raise ValueError(f"holds a secret (key {key_id!r}): leave only public keys in it")
        if key_id in found or (key_id is None and len(entries) > 1):
            raise ValueError(f"has several keys of the id {key_id!r}: give each its own")
        try:
            key = jwt.PyJWK(entry, algorithm=entry.get("alg")).key
        except _NO_KEY:
            raise ValueError(f"holds a key {key_id!r} that is not sound: export it anew") from None
        named = (entry["alg"],) if "alg" in entry else algorithms
        usable = tuple(each for each in named if each in algorithms)
        try:
            found[key_id] = (key, _usable(key, usable))
        except ValueError:
            continue  # of another kind: the issuer may well have some
    if not found:
        raise ValueError(f"holds no key for {', '.join(algorithms)}: name its algorithms")
    return found


def secret(raw: bytes, algorithms: tuple[str, ...]) -> dict[str | None, Any]:
    """The shared secret of a file, as base64. Raises ValueError, a clause with the remedy."""
    least = max(_SECRET_BYTES_MIN[each] for each in algorithms)
    remedy = f"write at least {least} random bytes as base64, as `openssl rand -base64 {least}`"
    try:
        key = base64.b64decode(raw.strip(), validate=True)
    except binascii.Error:
        raise ValueError(f"is not base64: {remedy}") from None
    if len(key) < least:
        raise ValueError(f"is too short: {remedy}")
    return {None: (key, algorithms)}


def _usable(key: Key, algorithms: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the algorithms that go with a key."""
    fitting: tuple[str, ...] = ()
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_BITS_MIN:
            raise ValueError(f"has {key.key_size} bits: use RSA keys of {RSA_BITS_MIN} or more")
        fitting = _RSA
    elif isinstance(key, ec.EllipticCurvePublicKey):
        fitting = tuple(name for name, curve in _CURVES.items() if curve == key.curve.name)
    elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        fitting = _EDWARDS
    usable = tuple(each for each in algorithms if each in fitting)
    if not usable:
        raise ValueError(f"is no key for {', '.join(algorithms)}: name the key's own algorithm")
    return usable
