"""What streams say, held against the protocol: order, gaps, repeats, values, ends.

One validator follows one wait over all the calls it takes. `take` a frame, and ask `over`;
what was wrong stands in `violations`, a sentence each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import stream_pb2

ValueOf = Callable[[str], bytes]


class Validator:
    """What the waits have in common."""

    def __init__(self, name: str, value_of: ValueOf) -> None:
        self.name = name
        self.events = 0
        self.over = False
        self.violations: list[str] = []
        self._value_of = value_of

    def broken(self, what: str) -> None:
        """Something is not as the protocol says."""
        self.violations.append(f"{self.name}: {what}")

    def check_terminal(self, task: Any) -> None:
        """A task that is over, with the value its worker reported."""
        if not task.terminal:
            self.broken(f"{task.task_id} is said to be over and is not")
        elif task.value.data != self._value_of(task.task_id):
            self.broken(f"{task.task_id} has a value that nobody reported")


class GroupValidator(Validator):
    """A wait for a group: Iterate in either order, or Watch."""

    def __init__(
        self, name: str, value_of: ValueOf, members: Sequence[str], *, by_index: bool = False
    ) -> None:
        super().__init__(name, value_of)
        self.after = b""
        self._members = members
        self._by_index = by_index
        self._seen: set[int] = set()
        self._last = 0

    def take(self, frame: Any) -> None:
        """A frame of this group."""
        for event in frame.events:
            self.events += 1
            self._check_place(event.index + 1 if self._by_index else event.position)
            if self._members[event.index] != event.task.task_id:
                self.broken(f"{event.task.task_id} is not member {event.index}")
            self.check_terminal(event.task)
        if frame.events and not (frame.after and frame.HasField("counts")):
            self.broken("a frame says nothing about where to resume, or has no counts")
        told = frame.HasField("counts")  # a Watch's heartbeats are of no group
        if told and frame.counts.done < self._last and not self._by_index:
            self.broken(f"{frame.counts.done} are done, and {self._last} were sent")
        self.after = frame.after or self.after
        kind, reason = frame.control.kind, frame.control.end_reason
        if kind == stream_pb2.CONTROL_KIND_RESET:
            self.broken("it began again, over one and the same store")
        if reason == stream_pb2.END_REASON_GONE:
            self.broken("the group is said to be gone")
        if reason == stream_pb2.END_REASON_COMPLETE:
            self.over = True
            if len(self._seen) != len(self._members):
                self.broken(f"gap: ended after {len(self._seen)} of {len(self._members)}")

    def _check_place(self, place: int) -> None:
        if place in self._seen:
            self.broken(f"duplicate: place {place} came again after {self._last}")
        elif place > self._last + 1:
            self.broken(f"gap: place {place} came after {self._last}")
        elif place < self._last:
            self.broken(f"order: place {place} came after {self._last}")
        self._seen.add(place)
        self._last = max(self._last, place)


class TasksValidator(Validator):
    """A wait for tasks by id: WaitFor or Watch, with transitions or without."""

    def __init__(
        self, name: str, value_of: ValueOf, task_ids: Iterable[str], *, transitions: bool = False
    ) -> None:
        super().__init__(name, value_of)
        self._transitions = transitions
        #: Ids still waited for, with the version last seen.
        self.pending = dict.fromkeys(task_ids, 0)
        self._told: set[str] = set()
        self._of_this_call: dict[str, int] = {}

    def resumed(self) -> None:
        """A new call begins: what is not terminal may come again."""
        self._of_this_call = {}

    def take(self, frame: Any) -> None:
        """A frame of this wait."""
        for event in frame.events:
            self.events += 1
            self._check(event.task)
        reason = frame.control.end_reason
        if reason == stream_pb2.END_REASON_GONE:
            self.broken("tasks are said to be gone")
        if reason == stream_pb2.END_REASON_COMPLETE:
            self.over = True
            if self.pending:
                self.broken(f"gap: ended without {len(self.pending)} tasks")
        if not self.pending and not isinstance(frame, pb.WaitForResponse):
            self.over = True  # a Watch has no end of its own

    def _check(self, task: Any) -> None:
        known = self.pending.get(task.task_id)
        if known is None:
            again = "duplicate" if task.task_id in self._told else "unasked"
            self.broken(f"{again}: {task.task_id}")
            return
        if task.version < known:
            self.broken(f"order: {task.task_id} version {task.version} after {known}")
        if task.version == self._of_this_call.get(task.task_id):
            self.broken(f"duplicate: {task.task_id} version {known}")
        if task.terminal:
            self.check_terminal(task)
            self._told.add(task.task_id)
            del self.pending[task.task_id]
            return
        if not self._transitions:
            self.broken(f"unasked: {task.task_id} is not over")
        self.pending[task.task_id] = self._of_this_call[task.task_id] = task.version
