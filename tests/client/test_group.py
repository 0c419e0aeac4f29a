"""Groups: what is kept of their structure."""

from __future__ import annotations

import pytest

from resultd._group import PARENTS, Groups, _request
from resultd.client import Client
from resultd.errors import SerializationError
from resultd.v1 import group_pb2


def test_parents_are_kept_beside_the_members() -> None:
    """Only where there are any; damaged ones are said."""
    client = Client("resultd://h")
    plain = client.GroupResult("g", [client.AsyncResult("a")])
    assert not _request(plain, plain.results, new_epoch=False).extra
    child = client.AsyncResult("a", parent=client.AsyncResult("p"))
    group = client.GroupResult("g", [child], parent=child)
    request = _request(group, group.results, new_epoch=False)
    kept = group_pb2.GroupMeta(group_id="g", extra=request.extra)
    assert Groups(client)._read_parents(kept) == {"0": "p", "": "a"}
    for damage in (b"[", b"[]", b'{"0": 7}', b"[" * 100_000):
        kept.extra[PARENTS].data = damage
        with pytest.raises(SerializationError, match="damaged"):
            Groups(client)._read_parents(kept)
