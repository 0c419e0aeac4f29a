"""Tenants have numbers."""

from __future__ import annotations

import pytest

from resultd_server import limits
from resultd_server.errors import LimitExceeded
from resultd_server.ledger import namespaces
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.txn import ReadTxn, WriteTxn
from tests.server.ledger.test_txn import empty_txn


def begun(txn: WriteTxn, name: str) -> Namespace:
    """The namespace, with something in it."""
    namespace = namespaces.find_or_next(txn, name)
    namespaces.begin(txn, namespace)
    return namespace


def test_a_namespace_keeps_its_number() -> None:
    """A name is numbered on its first write, differently from every other, for good."""
    txn = empty_txn()
    assert namespaces.find(txn, "a") is None
    made = [begun(txn, name) for name in ("a", "b", "a")]
    assert made[0] == made[2]
    assert made[0].prefix != made[1].prefix
    assert namespaces.find(txn, "a") == made[0]
    assert namespaces.names(txn) == {each.prefix: each for each in made}


def test_a_namespace_that_nothing_was_put_in_is_none() -> None:
    """A number that was only looked at is the next one's."""
    txn = empty_txn()
    wanted = namespaces.find_or_next(txn, "a")
    assert (namespaces.find(txn, "a"), namespaces.names(txn)) == (None, {})
    assert begun(txn, "b").prefix == wanted.prefix
    assert begun(txn, "a").prefix != wanted.prefix


def test_namespaces_are_known_by_prefix_without_reading_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All are read once; a new one is known once it is kept; what may not stay is not kept."""
    txn, known = empty_txn(), namespaces.Known()
    first, second, third = (begun(txn, name) for name in "cba")
    reads: list[None] = []
    names = namespaces.names

    def counted(txn: ReadTxn) -> dict[bytes, Namespace]:
        reads.append(None)
        return names(txn)

    monkeypatch.setattr(namespaces, "names", counted)
    assert known.with_prefixes(txn, set(), second.prefix) == {}
    assert known.with_prefixes(txn, {first.prefix}, second.prefix) == {first.prefix: first}
    assert len(reads) == 1
    both = {first.prefix: first, second.prefix: second}
    assert known.with_prefixes(txn, {*both}, second.prefix) == both
    assert (len(reads), known.named("b"), known.named("a")) == (1, second, None)
    assert known.with_prefixes(txn, {third.prefix}, second.prefix) == {third.prefix: third}
    assert (len(reads), known.named("a")) == (2, None)
    known.keep(third)
    assert known.with_prefixes(txn, {third.prefix}, second.prefix) == {third.prefix: third}
    assert (len(reads), namespaces.last(txn)) == (2, third.prefix)


@pytest.mark.parametrize("wanted", [2, 3, 4, 30])
def test_the_namespaces_of_a_store_are_bounded(
    monkeypatch: pytest.MonkeyPatch, wanted: int
) -> None:
    """One too many is refused, says so, and leaves nothing; those that are there go on."""
    monkeypatch.setattr(limits, "NAMESPACES_MAX", 3)
    txn = empty_txn()
    made = [begun(txn, f"n{number}") for number in range(min(wanted, 3))]
    for number in range(3, wanted):
        with pytest.raises(LimitExceeded, match=f"4 are more than the 3 .*'n{number}'"):
            begun(txn, f"n{number}")
    assert namespaces.names(txn) == {each.prefix: each for each in made}
    assert [begun(txn, each.name) for each in made] == made


def test_sequences_are_apart() -> None:
    """Each sequence counts 1, 2, 3 … by itself, in eight bytes."""
    txn = empty_txn()
    taken = [namespaces.next_number(txn, name) for name in (b"x", b"x", b"y")]
    assert [int.from_bytes(number, "big") for number in taken] == [1, 2, 1]
    assert {len(number) for number in taken} == {8}
