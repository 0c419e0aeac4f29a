"""Milliseconds since 1970 in the store, Timestamps on the wire."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from resultd_server.ledger.times import set_ms, to_ms


@given(at_ms=st.integers(0, 253_402_300_799_999))
def test_milliseconds_come_back(at_ms: int) -> None:
    """A time set in milliseconds is read back as the same milliseconds."""
    time = Timestamp()
    set_ms(time, at_ms)
    assert to_ms(time) == at_ms
    assert 0 <= time.nanos < 1_000_000_000
