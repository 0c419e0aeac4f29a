"""Milliseconds since 1970 in the store, Timestamps on the wire."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


def set_ms(timestamp: Timestamp, at_ms: int) -> None:
    """Sets a Timestamp field in place."""
    timestamp.seconds = at_ms // 1000
    timestamp.nanos = at_ms % 1000 * 1_000_000


def to_ms(time: Timestamp | Duration) -> int:
    """Whole milliseconds, rounded down."""
    return time.seconds * 1000 + time.nanos // 1_000_000


def mark(time: Timestamp) -> int:
    """What tells a time from others, to the nanosecond: 64 bits, the same again in 584 years."""
    return (time.seconds * 1_000_000_000 + time.nanos) % 2**64
