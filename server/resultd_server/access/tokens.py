"""Bearer tokens: random secrets of which the server keeps only a hash.

A token has 256 random bits, so its plain SHA-256 gives nothing away: there is no list of
likely tokens to try, which is what slow, salted hashes are for. It begins with `rsd_`, for
scanners that look for secrets in places where none should be.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

from resultd_server.access.roles import Principal

PREFIX = "rsd_"
_RANDOM_BYTES = 32
_INDEX = 32  # hexadecimal digits: 128 bits, more than ever meet by chance


def new() -> str:
    """A new token."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_of(token: str) -> str:
    """What the auth file keeps of a token: 64 hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The tokens of an auth file, found by the first half of their hash, compared by all of it."""

    def __init__(self, by_hash: Mapping[str, Principal]) -> None:
        self._found = {hash_[:_INDEX]: (hash_, who) for hash_, who in by_hash.items()}

    def find(self, token: str) -> Principal | None:
        """Whose token it is.

        What a clock could tell of is how far a hash matched, and nobody can make tokens whose
        hash matches further; the comparison takes the same time all the same.
        """
        wanted = hash_of(token)
        hash_, principal = self._found.get(wanted[:_INDEX], ("", None))
        return principal if hmac.compare_digest(hash_, wanted) else None
