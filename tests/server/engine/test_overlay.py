"""Layers above a store read as one: newer over older, deleted rows gone, in key order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st
from sortedcontainers import SortedDict

from resultd_server.engine.memory import MemoryTxn
from resultd_server.engine.overlay import Layer, OverlayTxn, Rows, WriteSet
from resultd_server.ledger.txn import Db, Page, within

KEYS = st.text("abc", max_size=2).map(str.encode)  # few, so that layers have the same ones
CHANGES = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=2)), max_size=12)
RANGES = st.lists(st.tuples(KEYS, KEYS), min_size=1, max_size=4)


def layer_of(changes: list[tuple[bytes, bytes | None]]) -> Layer:
    """A layer with these rows of one database."""
    layer = Layer()
    for key, value in changes:
        layer.of(Db.TASKS).values[key] = value
    return layer


def store(rows: dict[bytes, bytes]) -> MemoryTxn:
    """What lies below."""
    return MemoryTxn({db: SortedDict(rows if db is Db.TASKS else {}) for db in Db})


@given(st.dictionaries(KEYS, KEYS), st.lists(CHANGES, max_size=3), RANGES, st.integers(1, 9))
def test_layers_read_as_if_they_were_written(
    below: dict[bytes, bytes],
    changes: list[list[tuple[bytes, bytes | None]]],
    ranges: list[tuple[bytes, bytes]],
    count: int,
) -> None:
    """Gets and scans see what a store would have into which the layers had been written."""
    layers = [layer_of(each) for each in changes]
    said: dict[bytes, bytes | None] = {**below}
    for each in changes:
        said.update(each)
    txn = OverlayTxn(layers[::-1], store(below))
    for key in {*said, b"never"}:
        assert txn.get(Db.TASKS, key) == said.get(key)
    asked = [b"never", *said, *reversed(below), b"never"]
    values = [said.get(key) for key in asked]
    assert txn.get_many(Db.TASKS, asked, 2 * len(asked)) == values
    assert txn.get_many(Db.TASKS, asked, 3) == within(3, values)
    assert txn.get_many(Db.TASKS, asked, 3, 1) == within(3, values, 1)
    there = {key: value for key, value in said.items() if value is not None}
    for room_bytes in (3, 2 * len(there)):
        expected_rows = within(room_bytes, there.values(), 1)
        assert txn.get_many(Db.TASKS, list(there), room_bytes, 1) == expected_rows
    for start, stop in ranges:
        expected = [(k, v) for k, v in sorted(said.items()) if v is not None and start <= k < stop]
        assert list(txn.scan(Db.TASKS, start, stop)) == expected
        found = txn.page(Db.TASKS, start, stop, count)
        assert list(zip(*found, strict=True)) == expected[:count]
    assert txn.get(Db.META, b"") is None


def test_a_page_has_no_gap_where_rows_were_deleted() -> None:
    """What lies behind a layer's share of it is not passed over for what lies below."""
    above = layer_of([(b"a", None), (b"b", b"1"), (b"c", b"2"), (b"d", b"3")])
    txn = OverlayTxn([above], store({b"x": b"4", b"y": b"5"}))
    assert txn.page(Db.TASKS, b"", b"z", 3) == ([b"b", b"c", b"d"], [b"1", b"2", b"3"])


@given(st.lists(CHANGES, max_size=4), RANGES)
def test_ranges_follow_what_is_set(
    changes: list[list[tuple[bytes, bytes | None]]], ranges: list[tuple[bytes, bytes]]
) -> None:
    """However often keys are added between two looks, a range has all of them once, in order."""
    rows = Rows()
    for each in changes:
        rows.values.update(each)
        for start, stop in ranges:
            there = [k for k in sorted(rows.values) if start <= k < stop]
            assert rows.between(start, stop) == there
            assert rows.between(start, stop, 2) == there[:2]


def test_many_keys_after_few_are_sorted_too() -> None:
    """A handful of keys that come to many others find their places."""
    rows = Rows()
    rows.values.update({b"%04d" % number: b"" for number in range(0, 2_000, 2)})
    assert len(rows.between(b"", b"9")) == 1_000
    rows.values.update({b"%04d" % number: b"" for number in (1999, 3, 777)})
    assert rows.between(b"", b"9") == sorted(rows.values)


def test_a_write_set_changes_nothing_below() -> None:
    """What a write set puts and deletes is seen through it alone, and is told apart."""
    below, older = store({b"a": b"1", b"b": b"2"}), layer_of([(b"c", b"3")])
    txn = WriteSet((older,), below)
    assert txn.delete(Db.TASKS, b"a")
    assert not txn.delete(Db.TASKS, b"a")
    assert not txn.delete(Db.TASKS, b"never")
    txn.put(Db.TASKS, b"c", b"4")
    assert list(txn.scan(Db.TASKS, b"", b"z")) == [(b"b", b"2"), (b"c", b"4")]
    assert txn.own.of(Db.TASKS).values == {b"a": None, b"c": b"4"}
    assert below.get(Db.TASKS, b"a") == b"1"
    assert older.of(Db.TASKS).values == {b"c": b"3"}


def test_a_layer_laid_over_another_is_not_shared() -> None:
    """After `update` the newer layer may be changed, and the older one does not notice."""
    older, newer = Layer(), layer_of([(b"a", b"1")])
    assert not older
    newer.size_bytes = 7
    older.update(newer)
    newer.of(Db.TASKS).values[b"b"] = b"2"
    assert older.of(Db.TASKS).values == {b"a": b"1"}
    assert (len(older), older.size_bytes) == (1, 7)


def test_nothing_in_range_is_left_to_the_store() -> None:
    """Where no layer has a row that is asked for, the store's are handed on as they come."""

    class Below:
        def get(self, db: Db, key: bytes) -> bytes | None:
            return None

        def get_many(
            self, db: Db, keys: Sequence[bytes], room_bytes: int, skip_bytes: int = 0
        ) -> list[bytes | None]:
            return values

        def page(self, db: Db, start: bytes, stop: bytes, count: int) -> Page:
            return page

        def scan(
            self, db: Db, start: bytes, stop: bytes, *, passing: bool = False
        ) -> Iterator[tuple[bytes, bytes]]:
            return rows

    rows: Iterator[tuple[bytes, bytes]] = iter([(b"a", b"1")])
    values: list[bytes | None] = [None]
    page = [b"a"], [b"1"]
    txn = OverlayTxn((layer_of([(b"z", b"")]),), Below())
    assert txn.scan(Db.TASKS, b"a", b"b") is rows
    assert txn.page(Db.TASKS, b"a", b"b", 1) is page
    assert txn.get_many(Db.TASKS, [b"a"], 1) is values
