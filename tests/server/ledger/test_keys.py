"""What keys look like, and that their order is the order of what they stand for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from resultd_server import limits
from resultd_server.ledger import keys
from resultd_server.ledger.keys import Namespace

IDS = st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text)
NUMBERS = st.integers(0, 2**64 - 1)
INDEXES = st.integers(0, 2**32 - 1)
SPACE = Namespace("n", b"\0" * 7 + b"\1")


@given(at=st.tuples(NUMBERS, NUMBERS), ids=st.tuples(IDS, IDS))
def test_expiry_keys_sort_by_time(at: tuple[int, int], ids: tuple[str, str]) -> None:
    """What is due first comes first, and a key tells all that went into it."""
    first, second = (keys.expiry(a, keys.TASK, SPACE, i) for a, i in zip(at, ids, strict=True))
    if at[0] != at[1]:
        assert (first < second) == (at[0] < at[1])
    assert keys.parse_expiry(first) == (at[0], keys.TASK, SPACE.prefix, ids[0])


@given(number=NUMBERS, index=INDEXES, id_=IDS, other=IDS)
def test_a_members_keys_are_its_own(number: int, index: int, id_: str, other: str) -> None:
    """A membership is found by its id's prefix, and by no other id's."""
    key = keys.membership(SPACE, keys.TASK, id_, number, index)
    assert keys.parse_membership(key) == (number, index)
    assert keys.parse_member(keys.member(number, index)) == (number, index)
    prefix = keys.memberships(SPACE, keys.TASK, other)
    assert key.startswith(prefix) == (id_ == other)
    assert prefix <= key < keys.after_prefix(prefix) or id_ != other


def test_the_longest_key_fits() -> None:
    """No key of the longest id is over LMDB's 511 bytes, and ALL is greater than each."""
    longest = "\U0010ffff" * (limits.ID_BYTES_MAX // 4)
    found = [
        keys.membership(SPACE, keys.GROUP, longest, 2**64 - 1, 2**32 - 1),
        keys.expiry(2**63, keys.GROUP, SPACE, longest),
        keys.claimable(SPACE, longest, 2**64 - 1),
        keys.tombstone(SPACE, keys.TASK, longest),
        keys.record(SPACE, longest),
    ]
    assert max(map(len, found)) <= 511
    assert max(found) < keys.ALL
