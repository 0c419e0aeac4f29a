"""Milliseconds since 1970 in the store, Timestamps on the wire."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from resultd_server.ledger.times import mark, set_ms, to_ms


@given(at_ms=st.integers(0, 253_402_300_799_999))
def test_milliseconds_come_back(at_ms: int) -> None:
    """A time set in milliseconds is read back as the same milliseconds."""
    time = Timestamp()
    set_ms(time, at_ms)
    assert to_ms(time) == at_ms
    assert 0 <= time.nanos < 1_000_000_000


@given(st.integers(0, 253_402_300_799), st.integers(0, 999_999_999), st.integers(1, 10**12))
def test_times_have_marks_of_their_own(seconds: int, nanos: int, later_ns: int) -> None:
    """A nanosecond makes another one; every time that a report may name has one of 64 bits."""
    first = mark(Timestamp(seconds=seconds, nanos=nanos))
    after_s, nanos = divmod(nanos + later_ns, 1_000_000_000)
    assert first != mark(Timestamp(seconds=seconds + after_s, nanos=nanos))
    assert 0 <= first < 2**64
