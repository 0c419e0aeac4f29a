"""Events and frames put together from bytes that are stored as they are sent.

A protobuf message is the concatenation of its fields, so a stored record goes into an
event, and events into a frame, without being parsed. Field numbers are checked against
the descriptors by the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from resultd.v1 import stream_pb2

EVENT_PIECES = 3
_LENGTH_DELIMITED = 2


def varint(number: int) -> bytes:
    """A base-128 varint."""
    if number < 0x4000:
        return _SHORT[number]
    if number < 0x10000000:
        return _LOW[number & 0x3FFF] + _SHORT[number >> 14]
    return _encode(number)


def _encode(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


# Looked up for every event: lengths, indexes and positions of up to two bytes, and the
# first two bytes of longer ones.
_LAST = [bytes((number,)) for number in range(0x80)]
_MORE = [bytes((number | 0x80,)) for number in range(0x80)]
_SHORT = _LAST + [low + high for high in _LAST[1:] for low in _MORE]
_LOW = [low + high for high in _MORE for low in _MORE]


def message_field(field: int, encoded: bytes) -> bytes:
    """A field that holds an encoded message, bytes or a string."""
    return varint(field << 3 | _LENGTH_DELIMITED) + varint(len(encoded)) + encoded


def number_field(field: int, number: int) -> bytes:
    """A field that holds an unsigned number; nothing for 0."""
    return varint(field << 3) + varint(number) if number else b""


def place(index: int, position: int) -> bytes:
    """The fields of an event that say where a member stands: in its group, and in the log."""
    # Written for every member that is counted, so the tags are written out.
    index_field = b"\x20" + varint(index) if index else b""
    return index_field + b"\x28" + varint(position) if position else index_field


def read_place(encoded: bytes) -> tuple[int, int]:
    """(index, position) of `place`."""
    event = stream_pb2.Event.FromString(encoded)
    return event.index, event.position


def task_event(task: bytes, index: int = 0, position: int = 0) -> bytes:
    """Event{task, index, position} as it stands in a frame."""
    at = place(index, position)
    return _begin(len(task), len(at)) + task + at


def task_events(tasks: Sequence[bytes], places: Sequence[bytes]) -> list[bytes]:
    """The same of each task, for streams that send thousands: `places` as `place` makes them.

    Each in EVENT_PIECES, one after the other, to be joined with all the others at once.
    """
    pieces = [b""] * (EVENT_PIECES * len(tasks))
    pieces[::EVENT_PIECES] = map(_begin, map(len, tasks), map(len, places))
    pieces[1::EVENT_PIECES] = tasks
    pieces[2::EVENT_PIECES] = places
    return pieces


@lru_cache(maxsize=4_096)  # tasks of one group are often as long as one another
def _begin(task_bytes: int, place_bytes: int) -> bytes:
    """What an event begins with: its tag and length, and those of its task."""
    size = varint(task_bytes)
    return b"\x0a" + varint(1 + len(size) + task_bytes + place_bytes) + b"\x0a" + size


def group_event(group: bytes, *, index: int, position: int, gone: bool) -> bytes:
    """Event{group, index, position, gone} as it stands in a frame."""
    return message_field(
        1, message_field(2, group) + place(index, position) + number_field(6, gone)
    )


def frame(
    events: Iterable[bytes],
    *,
    control: bytes = b"",
    counts: bytes = b"",
    after: bytes = b"",
    group_id: str = "",
) -> bytes:
    """A frame of WaitFor, Iterate or Watch: they number their fields alike.

    `events` are those of `task_event` and `group_event`.
    """
    parts = [*events]
    if control:
        parts.append(message_field(2, control))
    if counts:
        parts.append(message_field(3, counts))
    if after:
        parts.append(message_field(4, after))
    if group_id:
        parts.append(message_field(5, group_id.encode()))
    return b"".join(parts)


def repeated(field: int, messages: Iterable[bytes]) -> bytes:
    """A repeated field of encoded messages."""
    return b"".join(message_field(field, message) for message in messages)


def page(rows: Iterable[bytes], next_token: str) -> bytes:
    """An answer of a List method: rows in field 1, the next page's token in field 2."""
    token = message_field(2, next_token.encode()) if next_token else b""
    return repeated(1, rows) + token
