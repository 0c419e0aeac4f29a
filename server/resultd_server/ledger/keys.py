"""What keys look like: the only place that knows.

Numbers are big-endian so that byte order is number order. Ids hold no control
characters (validated at the door), so a zero byte ends one. The longest key,
a membership, has 8 + 1 + 255 + 1 + 8 + 4 = 277 bytes of LMDB's 511.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

U64 = struct.Struct(">Q")
U32 = struct.Struct(">I")
_GROUP_AND_INDEX = struct.Struct(">QI")

TASK = b"t"
GROUP = b"g"
REVOCATION = b"r"

ALL = b"\xff" * 300
"""Greater than every key."""


class Namespace(NamedTuple):
    """A tenant: its name, and the eight bytes its keys begin with."""

    name: str
    prefix: bytes


def after_prefix(prefix: bytes) -> bytes:
    """The least key greater than every key that begins with `prefix`."""
    return prefix + ALL


def record(namespace: Namespace, id_: str) -> bytes:
    """TASKS, GROUPS, REVOCATIONS: one row an id."""
    return namespace.prefix + id_.encode()


FIRST_ID = b"\1"
"""In GROUPS no id comes before it: what is there is not named by ids."""


def group_large(namespace: Namespace, group_no: int) -> bytes:
    """GROUPS: continuation and extra of a run, where they are large."""
    return namespace.prefix + b"\0" + U64.pack(group_no)


def usage(prefix: bytes) -> bytes:
    """META: what the namespace with this prefix holds."""
    return b"usage:" + prefix


def tombstone(namespace: Namespace, kind: bytes, id_: str) -> bytes:
    """TOMBSTONES."""
    return namespace.prefix + kind + id_.encode()


def expiry(at_ms: int, kind: bytes, namespace: Namespace, id_: str) -> bytes:
    """EXPIRY: what is due first comes first."""
    return due(at_ms, kind) + record(namespace, id_)


def due(at_ms: int, kind: bytes) -> bytes:
    """What the EXPIRY keys of one time begin with; the record's key follows."""
    return U64.pack(at_ms) + kind


def parse_expiry(key: bytes) -> tuple[int, bytes, bytes, str]:
    """(at_ms, kind, namespace prefix, id) of an EXPIRY key."""
    return U64.unpack_from(key)[0], key[8:9], key[9:17], key[17:].decode()


def group(group_no: int) -> bytes:
    """COUNTERS, CLAIMS, TOTALS, GARBAGE: one row a run of a group."""
    return U64.pack(group_no)


def member(group_no: int, index: int) -> bytes:
    """MEMBERS by index; LOG by position."""
    return _GROUP_AND_INDEX.pack(group_no, index)


# The struct's own method: streams take thousands of keys apart.
parse_member: Callable[[bytes], tuple[int, int]] = _GROUP_AND_INDEX.unpack
"""(group number, index or position) of a MEMBERS or LOG key."""


def members_of_kind(namespace: Namespace, kind: bytes) -> bytes:
    """What the MEMBERSHIPS keys of all tasks, or all groups, begin with."""
    return namespace.prefix + kind


def memberships(namespace: Namespace, kind: bytes, id_: str) -> bytes:
    """What the MEMBERSHIPS keys of one id begin with."""
    return namespace.prefix + kind + id_.encode() + b"\0"


def membership(namespace: Namespace, kind: bytes, id_: str, group_no: int, index: int) -> bytes:
    """MEMBERSHIPS: from a member to its groups."""
    return memberships(namespace, kind, id_) + _GROUP_AND_INDEX.pack(group_no, index)


def parse_membership(key: bytes) -> tuple[int, int]:
    """(group number, index) of a MEMBERSHIPS key."""
    number, index = _GROUP_AND_INDEX.unpack_from(key, len(key) - _GROUP_AND_INDEX.size)
    return number, index


def claimable_scope(namespace: Namespace, scope: str) -> bytes:
    """What the CLAIMABLE keys of one scope begin with."""
    return namespace.prefix + scope.encode() + b"\0"


def claimable(namespace: Namespace, scope: str, group_no: int) -> bytes:
    """CLAIMABLE: complete groups nobody has finished acting on."""
    return claimable_scope(namespace, scope) + U64.pack(group_no)
