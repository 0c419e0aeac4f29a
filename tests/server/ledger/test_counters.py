"""A group's numbers: packed, and written once a commit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from resultd_server.ledger import counters
from resultd_server.ledger.counters import Counters
from resultd_server.ledger.keys import Namespace
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import Unit, View
from tests.server.ledger.test_txn import empty_txn

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
NAMES = st.text(max_size=20).filter(lambda text: "\0" not in text)


@given(
    st.builds(
        Counters,
        number=U64,
        namespace=st.builds(Namespace, NAMES, st.binary(min_size=8, max_size=8)),
        group_id=NAMES,
        epoch=U32,
        created_ms=U64,
        updated_ms=U64,
        expire_ms=U64,
        ttl_ms=U64,
        completed_ms=U64,
        sealed=st.booleans(),
        complete=st.booleans(),
        claimed_done=st.booleans(),
        height=st.integers(0, 255),
        expected=U32,
        declared=U32,
        added=U32,
        members=U32,
        next_index=U32,
        done=U32,
        succeeded=U32,
        failed=U32,
        revoked=U32,
        ignored=U32,
        gone=U32,
        scope=NAMES,
        filed_ms=U64,
    )
)
def test_numbers_come_back(group: Counters) -> None:
    """Whatever a group's numbers are, they are read as they were written."""
    assert Counters.unpack(group.number, group.pack()) == group


def test_numbers_without_an_entrys_place_are_read() -> None:
    """Rows written before they said where their entry stands say that it is not known."""
    group = Counters(1, Namespace("n", bytes(8)), "g", 1, 0, 0, 0, 0, scope="s", filed_ms=7)
    found = Counters.unpack(1, group.pack()[:-9])
    assert (found.scope, found.filed_ms) == ("s", 0)


def test_a_unit_writes_a_group_once() -> None:
    """Changes of one unit are seen by it at once, and by others when it is flushed."""
    txn = empty_txn()
    unit = Unit(txn, 5)
    group = Counters(1, Namespace("n", bytes(8)), "g", 1, 0, 0, 0, ttl_ms=10)
    unit.counters[1] = group
    group.members = 3
    group.touch(unit)
    assert counters.load(unit, 1) is group
    assert counters.load(View(txn, 5), 1) is None
    counters.flush(unit)
    found = counters.load(View(txn, 5), 1)
    assert found == group
    assert (found.members, found.expire_ms) == (3, 15)
    assert unit.dirty == set()
    counters.discard(unit, 1)
    assert counters.load(unit, 1) is None
    assert txn.get(Db.COUNTERS, b"\0" * 7 + b"\1") is None


def test_an_expired_group_is_not_loaded() -> None:
    """A run past its time is none, for readers, for writers, and where it is remembered."""
    txn = empty_txn()
    early, late = Unit(txn, 0), Unit(txn, 10)
    group = Counters(1, Namespace("n", bytes(8)), "g", 1, 0, 0, 0, ttl_ms=10)
    early.counters[1] = late.counters[1] = group
    group.touch(early)
    counters.flush(early)
    assert counters.load(View(txn, 9), 1) == group
    assert counters.load(View(txn, 10), 1) is None
    assert counters.load(Unit(txn, 10), 1) is None
    assert counters.load(late, 1) is None
