"""What a group of results is and does, and how it is kept on the server."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from resultd import _records
from resultd._effects import Op, each
from resultd._result import ResultBase, ResultCore
from resultd._set import SetCore
from resultd.errors import (
    GroupConflictError,
    GroupSealedError,
    GroupTotalMismatchError,
    SerializationError,
)
from resultd.serialization import JSON
from resultd.v1 import group_pb2, group_service_pb2, state_pb2, task_pb2, value_pb2

if TYPE_CHECKING:
    from resultd._core import ClientCore

# Where GroupMeta.extra keeps what its members cannot say: parents, as tuples, by index; the
# group's own under "".
PARENTS = "resultd.parents"
# Deeper than the server allows groups to be nested; a bound for stores that lie.
DEPTH_MAX = 16


class GroupCore(SetCore):
    """A set of results with an id, which can be saved and restored."""

    id: Any = None

    def __init__(
        self,
        id: str | None = None,  # noqa: A002 (Celery's name)
        results: list[Any] | None = None,
        parent: ResultBase | None = None,
        **kwargs: Any,
    ) -> None:
        self.id = id
        self.parent = parent
        super().__init__([] if results is None else results, **kwargs)

    @property
    def children(self) -> list[Any]:
        """The results."""
        return self.results  # type: ignore[no-any-return]  # typed above

    @property
    def _parent(self) -> Any:
        return self.parent

    def as_tuple(self) -> tuple[Any, list[Any]]:
        """Return what `result_from_tuple` takes."""
        parent = self.parent.as_tuple() if self.parent is not None else None
        return (self.id, parent), [child.as_tuple() for child in self.results]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.__reduce_args__()

    def __reduce_args__(self) -> tuple[Any, ...]:
        return self.id, self.results

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupCore):
            return bool(
                other.id == self.id
                and other.results == self.results
                and other.parent == self.parent
            )
        if isinstance(other, str):
            return bool(other == self.id)
        return NotImplemented

    def __hash__(self) -> int:  # type: ignore[override]  # it has an id, a set has not
        return hash(self.id)

    def __str__(self) -> str:
        return str(self.id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id} [{', '.join(map(str, self.results))}]>"


class Groups:
    """Saving, restoring and deleting groups: operations."""

    def __init__(self, client: ClientCore) -> None:
        self._client = client

    def save(self, group: GroupCore) -> Op[None]:
        """Keep a group, nested ones too. Other members under its id begin a new epoch."""
        if not group.id:
            raise ValueError("a group needs an id to be saved")
        children = list(group.results)  # the group may change while calls are made
        for child in children:
            if isinstance(child, GroupCore):
                yield from self.save(child)
        members = [_member(index, child) for index, child in enumerate(children)]
        declare = self._client.operations.declare_group
        try:
            yield from declare(_request(group, children, new_epoch=False), members, seal=True)
        except (GroupSealedError, GroupConflictError, GroupTotalMismatchError):
            yield from declare(_request(group, children, new_epoch=True), members, seal=True)

    def restore(self, group_id: str) -> Op[Any]:
        """Give a saved group, None if there is none of that id."""
        return (yield from self._restore(group_id, 0))

    def load(self, group_id: str) -> Op[Any]:
        """Give a group, with the members that are known of it, be it none."""
        group = yield from self.restore(group_id)
        return self._client.GroupResult(group_id, []) if group is None else group

    def delete(self, group_id: str) -> Op[None]:
        """Delete what was saved; no result is forgotten."""
        yield from self._client.operations.delete_group(group_id)

    def _restore(self, group_id: str, depth: int) -> Op[Any]:
        meta = yield from self._client.operations.group(group_id)
        if meta.existence != state_pb2.EXISTENCE_KNOWN:
            return None
        parents = self._read_parents(meta)
        members: list[group_pb2.GroupMember] = []
        yield from each(self._client.operations.group_members(group_id), members.append)
        results = []
        for member in members:
            parent = parents.get(str(member.index))
            results.append((yield from self._restore_member(member, parent, depth)))
        group = self._client.GroupResult(group_id, results)
        group.parent = parents.get("")
        return group

    def _restore_member(self, member: group_pb2.GroupMember, parent: Any, depth: int) -> Op[Any]:
        if not _records.is_group(member.kind):
            return self._client.AsyncResult(member.id, parent=parent)
        nested = (yield from self._restore(member.id, depth + 1)) if depth < DEPTH_MAX else None
        if nested is None:  # deleted since
            nested = self._client.GroupResult(member.id, [])
        return nested

    def _read_parents(self, meta: group_pb2.GroupMeta) -> dict[str, Any]:
        if PARENTS not in meta.extra:
            return {}
        try:
            stored = json.loads(meta.extra[PARENTS].data)
            return {key: from_tuple(value, self._client) for key, value in stored.items()}
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise SerializationError(
                f"the parents kept with {meta.group_id!r} are damaged"
            ) from error


def from_tuple(r: Any, client: ClientCore) -> Any:
    """Build results from what `as_tuple` gave, JSON's lists included, or from a 5-tuple.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(r, ResultBase):
        return r
    if not isinstance(r, (tuple, list)) or len(r) not in (2, 5):
        raise ValueError(
            "a result's tuple is ((id, parent), nodes) or "
            f"(task_id, status, result, traceback, children), not {r!r}"
        )
    if len(r) == 5:
        return _from_five(r, client)
    head, nodes = r
    result_id, parent = head if isinstance(head, (list, tuple)) else (head, None)
    if parent is not None:
        parent = from_tuple(parent, client)
    if nodes is None:
        return client.AsyncResult(result_id, parent=parent)
    group = client.GroupResult(result_id, [from_tuple(child, client) for child in nodes])
    group.parent = parent
    return group


def _from_five(r: Iterable[Any], client: ClientCore) -> Any:
    task_id, status, value, traceback, children = r
    result = client.AsyncResult(task_id)
    if status in client.terminal_states:
        # What is final is taken as said, without asking the server.
        pairs = [_pair(child) for child in children or ()]
        result._settle(
            {
                "task_id": task_id,
                "status": status,
                "result": value,
                "traceback": traceback,
                "children": pairs,
                "existence": "KNOWN",
            }
        )
    return result


def _pair(child: Any) -> tuple[str, int]:
    """Return a child as a record names it: its id and what the id names."""
    message = _records.child(child)
    return message.id, message.kind


def _member(index: int, child: Any) -> group_pb2.GroupMember:
    if isinstance(child, GroupCore):
        kind = task_pb2.MEMBER_KIND_GROUP
    elif isinstance(child, ResultCore):
        kind = task_pb2.MEMBER_KIND_TASK
    else:
        raise TypeError(f"a group keeps results and groups that have ids, not {child!r}")
    return group_pb2.GroupMember(index=index, id=child.id, kind=kind)


def _request(
    group: GroupCore, children: list[Any], new_epoch: bool
) -> group_service_pb2.CreateGroupRequest:
    parents = {
        str(index): child._parent.as_tuple()
        for index, child in enumerate(children)
        if child._parent is not None
    }
    if group.parent is not None:
        parents[""] = group.parent.as_tuple()
    request = group_service_pb2.CreateGroupRequest(group_id=group.id, new_epoch=new_epoch)
    if parents:
        payload = value_pb2.Payload(content_type=JSON, data=json.dumps(parents).encode())
        request.extra[PARENTS].CopyFrom(payload)
    return request
