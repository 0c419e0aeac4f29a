"""The members of a set that is waited for, and the parents that they come after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery import states
from celery.result import AsyncResult, ResultSet

from resultd import _ids
from resultd.celery._records import text_id


class Members:
    """The members of a set that is waited for: results, and sets of their own.

    And their parents: a set that comes after a task which failed is never run, and nobody says
    so of its members. (Of single tasks Celery does; of its chains' groups it does not.)
    """

    def __init__(self, result: Any) -> None:
        self._nodes = [_Node(each) for each in result.results or ()]
        self._by_id: dict[str, list[tuple[AsyncResult, _Node]]] = {}
        for node in self._nodes:
            for leaf in node.leaves():
                node.missing += 1
                self._by_id.setdefault(text_id(leaf.id), []).append((leaf, node))
        self._unready = sum(1 for node in self._nodes if node.missing)
        # By a parent's id: what sets hold that come after it, and the members that they are of.
        self._after: dict[str, list[tuple[list[Any], list[_Node]]]] = {}
        #: Metas of parents that are known to have failed, the oldest first.
        self.failures: dict[str, dict[str, Any]] = {}
        self._follow(result, self._nodes)
        for node in self._nodes:
            for inner in _sets(node.result):
                self._follow(inner, [node])

    def _follow(self, result: Any, nodes: list[_Node]) -> None:
        held = list(result.results or ())
        for parent in parents(result):
            if is_known(parent):
                if parent._cache["status"] not in states.PROPAGATE_STATES:
                    continue
                self.failures.setdefault(text_id(parent.id), parent._cache)
            elif not _ids.fits(text_id(parent.id)):
                continue  # no server is ever told of it
            self._after.setdefault(text_id(parent.id), []).append((held, nodes))

    def __len__(self) -> int:
        """How many members are not ready yet, and may still be."""
        return self._unready

    def __contains__(self, task_id: str) -> bool:
        """Whether a result that is not ready has this id."""
        return task_id in self._by_id

    @property
    def ids(self) -> list[str]:
        """What is to be waited for: members, and then parents."""
        wanted = [
            task_id
            for task_id, places in self._by_id.items()
            if any(node.missing for _, node in places)
        ]
        wanted += (task_id for task_id in self._after if task_id not in self.failures)
        return list(dict.fromkeys(wanted))

    @property
    def bereft(self) -> list[str]:
        """What is not ready of members whose parent is known to have failed."""
        after = (each for task_id in self.failures for each in self._after[task_id])
        lists = {id(nodes): nodes for _, nodes in after}
        leaves = (leaf for nodes in lists.values() for node in nodes for leaf in node.leaves())
        return list(dict.fromkeys(text_id(leaf.id) for leaf in leaves))

    def ready(self) -> list[tuple[str, Any]]:
        """Give what `iter_native` yields of the members that are ready from the beginning."""
        return [node.outcome() for node in self._nodes if not node.missing]

    def take(self, task_id: str, meta: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """A result is ready: give what is yielded of the members that are so by it."""
        for leaf, node in self._by_id.pop(task_id, ()):
            leaf._maybe_set_cache(meta)
            if node.missing:  # else given up before
                node.missing -= 1
                if not node.missing:
                    self._unready -= 1
                    yield node.outcome()

    def failed(self, task_id: str, meta: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """A task has failed: give what is yielded of the members that will never run."""
        for held, nodes in self._after.pop(task_id, ()):
            if all(next(_leaves(each), None) is None for each in held):
                continue  # ready for all that
            for node in nodes:
                if node.missing:
                    node.missing = 0
                    self._unready -= 1
                    yield node.result.id, meta


class _Node:
    """One member, and how many results in it are not ready."""

    __slots__ = ("children", "missing", "result")

    def __init__(self, result: Any) -> None:
        self.result = result
        # Of a set what is waited for: what is added to it meanwhile may never be ready.
        self.children = list(result.results or ()) if isinstance(result, ResultSet) else None
        self.missing = 0

    def leaves(self) -> Iterator[AsyncResult]:
        """Give the single results in it that are not known to be ready."""
        for each in [self.result] if self.children is None else self.children:
            yield from _leaves(each)

    def outcome(self) -> tuple[str, Any]:
        """Give what `iter_native` yields of a member that is ready."""
        if self.children is not None:
            return self.result.id, self.children
        return self.result.id, self.result._cache


def _singles(result: Any) -> Iterator[AsyncResult]:
    """Give the single results in a result or set."""
    if isinstance(result, ResultSet):
        for member in result.results or ():
            yield from _singles(member)
    else:
        yield result


def _leaves(result: Any) -> Iterator[AsyncResult]:
    """Give the single results in a result or set that are not known to be ready."""
    return (single for single in _singles(result) if not is_known(single))


def is_known(result: Any) -> bool:
    """Whether a single result has been seen ready."""
    return getattr(result, "_cache", None) is not None


def _sets(result: Any) -> Iterator[Any]:
    """Give a set and the sets within it; nothing of a single result."""
    if isinstance(result, ResultSet):
        yield result
        for member in result.results or ():
            yield from _sets(member)


def parents(result: Any) -> list[AsyncResult]:
    """Give the single results that a result or set comes after, the oldest first."""
    found: list[AsyncResult] = []
    node = getattr(result, "parent", None)  # a plain ResultSet has none
    while node is not None:
        found[:0] = _singles(node)
        node = node.parent
    return found
