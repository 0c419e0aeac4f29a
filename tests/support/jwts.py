"""Somebody who issues JWTs, for tests."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER, AUDIENCE = "https://login.example.org", "resultd"
MAKERS: dict[str, Any] = {
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "RS256": lambda: rsa.generate_private_key(65_537, 2048),
    "PS256": lambda: rsa.generate_private_key(65_537, 2048),
}


class Issuer:
    """Signs with a key of its own."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self.key = MAKERS[algorithm]()
        self.pem: bytes = self.key.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )

    def write(self, file: Path) -> None:
        """Leaves the public key in a file."""
        file.write_bytes(self.pem)

    def section(self, key: str) -> str:
        """An auth file that trusts this issuer, with the key that `key` names."""
        return (
            f'[jwt]\nalgorithms = ["{self.algorithm}"]\n'
            f'issuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n{key}\n'
        )

    def jwk(self, **more: object) -> dict[str, Any]:
        """The public key, as key sets have it."""
        made = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.key.public_key())
        return {**json.loads(made), **more}

    def token(self, headers: dict[str, Any] | None = None, **claims: object) -> str:
        """A sound token, but for what the claims say; `exp` in seconds from now, None: left out."""
        exp = claims.pop("exp", 60)
        said = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "somebody",
            "resultd": {"mine": "reader"},
            "exp": int(time.time()) + exp if isinstance(exp, int) else exp,
            **claims,
        }
        sound = {key: value for key, value in said.items() if value is not None}
        return jwt.encode(sound, self.key, algorithm=self.algorithm, headers=headers)
