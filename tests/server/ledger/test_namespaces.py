"""Tenants have numbers."""

from __future__ import annotations

from resultd_server.ledger import namespaces
from tests.server.ledger.test_txn import empty_txn


def test_a_namespace_keeps_its_number() -> None:
    """A name is numbered on its first write, differently from every other, for good."""
    txn = empty_txn()
    assert namespaces.find(txn, "a") is None
    made = [namespaces.find_or_create(txn, name) for name in ("a", "b", "a")]
    assert made[0] == made[2]
    assert made[0].prefix != made[1].prefix
    assert namespaces.find(txn, "a") == made[0]
    assert namespaces.names(txn) == {each.prefix: each for each in made}


def test_sequences_are_apart() -> None:
    """Each sequence counts 1, 2, 3 … by itself, in eight bytes."""
    txn = empty_txn()
    taken = [namespaces.next_number(txn, name) for name in (b"x", b"x", b"y")]
    assert [int.from_bytes(number, "big") for number in taken] == [1, 2, 1]
    assert {len(number) for number in taken} == {8}
