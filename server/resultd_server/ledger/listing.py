"""Pages of records, groups and members: bounded steps, opaque tokens."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from resultd.v1 import group_pb2, group_service_pb2, result_service_pb2, task_pb2
from resultd_server import limits
from resultd_server.errors import FieldInvalid
from resultd_server.ledger import (
    claims,
    counters,
    group_payloads,
    group_rows,
    keys,
    memberships,
    records,
)
from resultd_server.ledger.keys import U64, Namespace
from resultd_server.ledger.times import to_ms
from resultd_server.ledger.txn import Db
from resultd_server.ledger.unit import View


class Page(NamedTuple):
    """Serialized messages, and where the next page begins (None: nowhere)."""

    rows: list[bytes]
    next_token: str


class _Filling:
    """A page that is being filled: it ends with so many rows read, or bytes, or to be answered."""

    def __init__(self, size: int) -> None:
        self.rows: list[bytes] = []
        self._left = size
        self._left_rows = limits.READ_ROWS_MAX
        self._left_bytes = limits.READ_BYTES_MAX
        self._room_bytes = limits.RESPONSE_BYTES_MAX // 2

    @property
    def full(self) -> bool:
        """Whether the next row is to be the first of the next page. A page has looked at one."""
        return not (self._left and self._left_rows) or self._left_bytes < 0

    def look(self, raw: bytes) -> None:
        """A row was read, whether it is wanted or not."""
        self._left_rows -= 1
        self._left_bytes -= len(raw)

    def add(self, row: bytes) -> bool:
        """Adds what is wanted; whether there was room."""
        self._room_bytes -= len(row)
        if self.rows and self._room_bytes < 0:
            return False
        self.rows.append(row)
        self._left -= 1
        return True


def encode_token(cursor: bytes) -> str:
    """An opaque page token."""
    return base64.urlsafe_b64encode(cursor).decode()


def decode_token(token: str) -> bytes:
    """The cursor of a page token. Raises FieldInvalid."""
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _not_ours() from None


def _not_ours() -> FieldInvalid:
    return FieldInvalid(
        "page_token", "is not one of ours", "pass the next_page_token of the page before"
    )


def list_results(
    view: View, namespace: Namespace, wanted: result_service_pb2.ListResultsRequest
) -> Page:
    """A page of records by id, or by index where one group is asked for."""
    if wanted.group_id:
        return _list_group_results(view, namespace, wanted)
    start = namespace.prefix + decode_token(wanted.page_token)
    stop = keys.after_prefix(namespace.prefix)
    page = _Filling(wanted.page_size)
    for key, raw in view.txn.scan(Db.TASKS, start, stop):
        id_ = key[len(namespace.prefix) :]
        if page.full:
            return Page(page.rows, encode_token(id_))
        page.look(raw)
        found = records.read_row(view, namespace, id_.decode(), raw)
        if found is not None and _matches(found, wanted) and not page.add(found.wire):
            return Page(page.rows, encode_token(id_))
    return Page(page.rows, "")


def _list_group_results(
    view: View, namespace: Namespace, wanted: result_service_pb2.ListResultsRequest
) -> Page:
    group = group_rows.find(view, namespace, wanted.group_id)
    if group is None:
        return Page([], "")
    first = _index_of_token(wanted.page_token)
    page = _Filling(wanted.page_size)
    for index, member in memberships.scan(view, group.number, first):
        if page.full:
            return Page(page.rows, _index_token(index))
        raw = None
        if member.kind == keys.TASK:
            raw = view.txn.get(Db.TASKS, keys.record(namespace, member.id))
        page.look(raw or b"")
        found = None if raw is None else records.read_row(view, namespace, member.id, raw)
        if found is not None and _matches(found, wanted) and not page.add(found.wire):
            return Page(page.rows, _index_token(index))
    return Page(page.rows, "")


def _matches(found: records.Record, wanted: result_service_pb2.ListResultsRequest) -> bool:
    if wanted.states and found.state not in wanted.states:
        return False
    if not wanted.name and not wanted.HasField("since"):
        return True
    meta = task_pb2.TaskMeta.FromString(found.wire)
    if wanted.name and meta.name != wanted.name:
        return False
    return not wanted.HasField("since") or to_ms(meta.updated_time) >= to_ms(wanted.since)


def _index_token(index: int) -> str:
    return encode_token(U64.pack(index))


def _index_of_token(token: str) -> int:
    if not token:
        return 0
    raw = decode_token(token)
    if len(raw) != U64.size or U64.unpack(raw)[0] > limits.INDEX_MAX:
        raise _not_ours()
    return int(U64.unpack(raw)[0])


def list_groups(
    view: View, namespace: Namespace, wanted: group_service_pb2.ListGroupsRequest
) -> Page:
    """A page of groups by id; of those that a scope may claim, by age."""
    if wanted.claimable and wanted.claim_scope:
        return _list_claimable(view, namespace, wanted)
    start = namespace.prefix + max(keys.FIRST_ID, decode_token(wanted.page_token))
    stop = keys.after_prefix(namespace.prefix)
    page = _Filling(wanted.page_size)
    for key, raw in view.txn.scan(Db.GROUPS, start, stop):
        id_ = key[len(namespace.prefix) :]
        if page.full:
            return Page(page.rows, encode_token(id_))
        page.look(raw)
        group = counters.load(view, U64.unpack_from(raw)[0])
        if group is None or not _group_matches(view, group, wanted):
            continue
        if not page.add(group_rows.brief(view, group, raw).SerializeToString()):
            return Page(page.rows, encode_token(id_))
    return Page(page.rows, "")


def _list_claimable(
    view: View, namespace: Namespace, wanted: group_service_pb2.ListGroupsRequest
) -> Page:
    # Asked by every idle worker again and again: it costs what there is to do, not what
    # there is.
    prefix = keys.claimable_scope(namespace, wanted.claim_scope)
    start = prefix + _number_of_token(view, namespace, wanted.page_token)
    stop = keys.after_prefix(prefix)
    page = _Filling(wanted.page_size)
    for key, _ in view.txn.scan(Db.CLAIMABLE, start, stop):
        if page.full:
            return Page(page.rows, _claimable_token(view, key))
        group = counters.load(view, U64.unpack(key[-U64.size :])[0])
        if group is None or not _group_matches(view, group, wanted):
            page.look(b"")
            continue
        raw = group_payloads.row(view, group)
        page.look(raw)
        if not page.add(group_rows.brief(view, group, raw).SerializeToString()):
            return Page(page.rows, _claimable_token(view, key))
    return Page(page.rows, "")


def _claimable_token(view: View, key: bytes) -> str:
    """Names a group, expired or not, by id and epoch: its number counts everybody's groups."""
    group = _counters_of(view, key[-U64.size :])
    return encode_token(U64.pack(group.epoch) + group.group_id.encode())


def _number_of_token(view: View, namespace: Namespace, token: str) -> bytes:
    """The number of the group that a token names, packed; of one that is gone: the first.

    So a page may repeat what others said, and skips nothing. Raises FieldInvalid.
    """
    raw = decode_token(token)
    if not raw:
        return b""
    try:
        group_id = raw[U64.size :].decode()
    except UnicodeDecodeError:
        group_id = ""
    if not 0 < len(raw) - U64.size <= limits.ID_BYTES_MAX or not group_id:
        raise _not_ours()
    number = group_rows.number_of(view, namespace, group_id)
    if number is None:
        return b""
    packed = U64.pack(number)
    return packed if _counters_of(view, packed).epoch == U64.unpack_from(raw)[0] else b""


def _counters_of(view: View, packed: bytes) -> counters.Counters:
    """Those of a group there is, expired or not."""
    (number,) = U64.unpack(packed)
    raw = view.txn.get(Db.COUNTERS, keys.group(number))
    assert raw is not None, "claimable, and a group's, only while there are counters"
    return counters.Counters.unpack(number, raw)


def _group_matches(
    view: View, group: counters.Counters, wanted: group_service_pb2.ListGroupsRequest
) -> bool:
    if wanted.incomplete and group.complete:
        return False
    if wanted.claim_scope and group.scope != wanted.claim_scope:
        return False
    if wanted.HasField("unchanged_since") and group.updated_ms > to_ms(wanted.unchanged_since):
        return False
    return not wanted.claimable or claims.free(view, group)


def list_members(view: View, group: counters.Counters, page_size: int, page_token: str) -> Page:
    """A page of a group's members by index."""
    rows: list[bytes] = []
    for index, member in memberships.scan(view, group.number, _index_of_token(page_token)):
        if len(rows) == page_size:
            return Page(rows, _index_token(index))
        rows.append(member_message(index, member).SerializeToString())
    return Page(rows, "")


def member_message(index: int, member: memberships.Member) -> group_pb2.GroupMember:
    """A member as it goes over the wire."""
    message = group_pb2.GroupMember(index=index, id=member.id, position=member.position)
    message.kind = (
        task_pb2.MEMBER_KIND_GROUP if member.kind == keys.GROUP else task_pb2.MEMBER_KIND_TASK
    )
    if member.position and member.counted_as != counters.GONE:
        message.state = member.counted_as  # type: ignore[assignment]  # stored as its number
    return message
