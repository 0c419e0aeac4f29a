"""Tokens: random, and known by their hash alone."""

from __future__ import annotations

import hashlib
import re

from resultd_server.access import tokens
from resultd_server.access.roles import Principal
from resultd_server.access.tokens import Tokens


def test_a_token_is_random_and_can_be_told_from_other_words() -> None:
    """256 bits behind a prefix that scanners can look for; no two alike."""
    made = {tokens.new() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"rsd_[A-Za-z0-9_-]{43}", token) for token in made)


def test_what_is_kept_is_the_plain_sha256() -> None:
    """So that others can make entries too."""
    assert tokens.hash_of("rsd_x") == hashlib.sha256(b"rsd_x").hexdigest()


def test_a_token_is_found_and_nothing_else_is() -> None:
    """Several at once; the hash itself, a part, another case, or half a hash open nothing."""
    made = {name: tokens.new() for name in "abc"}
    known = Tokens({tokens.hash_of(token): Principal(name, {}) for name, token in made.items()})
    for name, token in made.items():
        found = known.find(token)
        assert found is not None
        assert found.name == name
        for other in (token[:-1], token + "A", token.upper(), tokens.hash_of(token), "", "é"):
            assert known.find(other) is None


def test_the_whole_hash_counts() -> None:
    """A token whose hash only begins like a known one is not let in."""
    token = tokens.new()
    whole = tokens.hash_of(token)
    flipped = whole[:-1] + ("0" if whole[-1] != "0" else "1")
    assert Tokens({flipped: Principal("a", {})}).find(token) is None
