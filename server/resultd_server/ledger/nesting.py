"""Groups in groups: at most 16 deep, and never inside themselves."""

from __future__ import annotations

from resultd_server import limits
from resultd_server.errors import GroupNesting, LimitExceeded
from resultd_server.ledger import group_rows, keys, memberships
from resultd_server.ledger.counters import Counters
from resultd_server.ledger.unit import Unit


class Above:
    """A group and those above it, looked at once for all groups that are to be its members.

    Above(unit, parent).check("child")

    Raises LimitExceeded where they are too many to be looked at.
    """

    def __init__(self, unit: Unit, parent: Counters) -> None:
        self._unit = unit
        self._parent = parent
        self._ids: set[str] = set()
        self._levels = visited = 0
        level = [parent]
        while level and self._levels < limits.GROUP_DEPTH_MAX:  # nothing fits below so many
            self._levels += 1
            above: dict[int, Counters] = {}
            for group in level:
                self._ids.add(group.group_id)
                for place in memberships.of(unit, group.namespace, keys.GROUP, group.group_id):
                    above[place.group.number] = place.group
                visited += 1
                if visited > limits.GROUP_PARENTS_VISITED:
                    raise LimitExceeded(
                        "groups above", visited, limits.GROUP_PARENTS_VISITED, "nest fewer groups"
                    )
            level = list(above.values())

    def check(self, child_id: str) -> None:
        """Raises GroupNesting where a group would contain itself or be nested too deep."""
        parent_id = self._parent.group_id
        if child_id in self._ids:
            raise GroupNesting(
                f"Group {child_id!r} would contain itself: leave it out of {parent_id!r}.",
                group_id=parent_id,
            )
        child = group_rows.find(self._unit, self._parent.namespace, child_id)
        height = 1 if child is None else child.height
        if height + self._levels > limits.GROUP_DEPTH_MAX:
            raise GroupNesting(
                f"Groups nest at most {limits.GROUP_DEPTH_MAX} deep: flatten the workflow.",
                group_id=parent_id,
            )


def raise_heights(unit: Unit, parent: Counters, child_id: str) -> None:
    """Notes how tall a group and those above it are, once a member group was added."""
    child = group_rows.find(unit, parent.namespace, child_id)
    level, height = [parent], 1 if child is None else child.height
    while level:
        height += 1
        above: dict[int, Counters] = {}
        for group in level:
            if group.height >= height:
                continue
            group.height = height
            unit.dirty.add(group.number)  # written, and no more: nobody sees a height
            for place in memberships.of(unit, group.namespace, keys.GROUP, group.group_id):
                above[place.group.number] = place.group
        level = list(above.values())
