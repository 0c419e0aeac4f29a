"""What records and groups are to do, said a second time as simply as possible: in dicts.

Knows nothing of the server's code. Used by the stateful test of the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HOUR_MS = 3_600_000
TERMINAL = ("SUCCESS", "FAILURE", "REVOKED", "IGNORED")
RANKS = ("PENDING", "RECEIVED", "STARTED", "PROGRESS", "RETRY")
GONE = "GONE"

Member = tuple[str, str]
"""("task" or "group", id)."""


@dataclass
class TaskModel:
    """A record."""

    state: str
    attempt: int
    content: bytes
    version: int
    reported_ms: int
    expires_ms: int
    done_s: int | None = None
    """When its last report said that it was done."""


@dataclass
class Stone:
    """What is known of a record or group that is gone."""

    existence: str
    version: int
    until_ms: int
    state: str = ""
    attempt: int = 0
    content: bytes = b""
    done_s: int | None = None


@dataclass
class GroupModel:
    """One run of a group. `counted`: index -> what it counts as, in the log's order."""

    epoch: int
    ttl_ms: int
    expires_ms: int = 0
    members: dict[int, Member] = field(default_factory=dict)
    counted: dict[int, str] = field(default_factory=dict)
    declared: int | None = None
    added: int = 0
    requests: set[str] = field(default_factory=set)
    complete: bool = False
    token: str = ""
    lease_ms: int = 0
    done: bool = False

    @property
    def next_index(self) -> int:
        """The next free place."""
        return max(self.members, default=-1) + 1

    @property
    def expected(self) -> int | None:
        """How many there are to be, once sealed."""
        return None if self.declared is None else self.declared + self.added

    @property
    def outcome(self) -> str:
        """What it counts as in a group that it is in."""
        bad = {"FAILURE", "REVOKED", GONE} & set(self.counted.values())
        return "FAILURE" if bad else "SUCCESS"

    @property
    def full(self) -> bool:
        """Whether no more members are expected."""
        return self.expected is not None and len(self.members) >= self.expected


def decide(stored: tuple[str, int, bytes], said: tuple[str, int, bytes]) -> str:
    """The transition rule."""
    (before, number, content), (after, attempt, new) = stored, said
    numbered = number > 0 and attempt > 0
    if before in TERMINAL:
        if after == before and new == content and attempt in (number, 0):
            return "DUPLICATE"
        if before == "SUCCESS" or after not in TERMINAL:
            return "SUPERSEDED"
        better = not numbered or after == "SUCCESS" or attempt > number
        return "APPLIED" if better else "SUPERSEDED"
    if not numbered or after == "SUCCESS" or attempt > number:
        return "APPLIED"
    rank = RANKS.index(after) if after in RANKS else 5
    later = attempt == number and rank >= RANKS.index(before)
    return "APPLIED" if later else "SUPERSEDED"


class Model:
    """A store of one namespace."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.tasks: dict[str, TaskModel] = {}
        self.groups: dict[str, GroupModel] = {}
        self.task_stones: dict[str, Stone] = {}
        self.group_stones: dict[str, Stone] = {}

    # Tasks.

    def report(
        self,
        id_: str,
        state: str,
        attempt: int,
        content: bytes,
        ttl_ms: int,
        group_id: str = "",
        index: int | None = None,
        done_s: int | None = None,
    ) -> tuple[str, int, str]:
        """(disposition, version, membership)."""
        disposition = "APPLIED"
        exists = True
        stored, stone = self.tasks.get(id_), self.task_stones.get(id_)
        said = (state, attempt, content)
        number = attempt
        if stored is not None:
            disposition = decide((stored.state, stored.attempt, stored.content), said)
            version = stored.version + (disposition == "APPLIED")
            number = max(stored.attempt, attempt)
        elif stone is not None:
            version = stone.version + 1
            again = done_s is None or done_s == stone.done_s
            if (
                stone.state in TERMINAL
                and again
                and decide((stone.state, stone.attempt, stone.content), said) == "DUPLICATE"
            ):
                disposition, exists, version = "DUPLICATE", False, stone.version
        else:
            version = 1
        if disposition == "APPLIED":
            self.task_stones.pop(id_, None)
            self.tasks[id_] = TaskModel(
                state, number, content, version, self.now_ms, self.now_ms + ttl_ms, done_s
            )
        membership = "UNSPECIFIED"
        if group_id:
            membership = self._join(id_, group_id, index, exists)
        if exists and (disposition == "APPLIED" or group_id):
            now = self.tasks[id_].state
            if now in TERMINAL:
                self._settle(("task", id_), now)
                membership = "COUNTED" if membership == "PENDING" else membership
        return disposition, version, membership

    def _join(self, id_: str, group_id: str, index: int | None, exists: bool) -> str:
        group = self.groups.get(group_id)
        if group is None:
            stone = self.group_stones.get(group_id)
            if not exists or (stone is not None and stone.existence == "FORGOTTEN"):
                return "NOT_A_MEMBER"
            group = self.start(group_id, 24 * HOUR_MS)
        member = ("task", id_)
        if index is None:
            places = sorted(at for at, there in group.members.items() if there == member)
            index = places[0] if places else group.next_index
        there = group.members.get(index)
        if there is not None:
            if there != member:
                return "INDEX_TAKEN"
            return "ALREADY" if index in group.counted else "PENDING"
        if not exists:
            return "NOT_A_MEMBER"
        if group.full:
            return "SEALED"
        group.members[index] = member
        self.touch(group)
        return "PENDING"

    def forget(self, id_: str) -> bool:
        """Whether there was one."""
        return self._bury(id_, "FORGOTTEN")

    def _bury(self, id_: str, existence: str) -> bool:
        stored = self.tasks.pop(id_, None)
        if stored is None:
            return False
        self.task_stones[id_] = Stone(
            existence, stored.version, self.now_ms + HOUR_MS,
            stored.state, stored.attempt, stored.content, stored.done_s,
        )  # fmt: skip
        return True

    def revoke(self, id_: str) -> str:
        """The terminal state it has now, or nothing: a worker has to act."""
        stored = self.tasks.get(id_)
        if stored is not None and stored.state in TERMINAL:
            return stored.state
        if stored is not None and stored.state in ("STARTED", "PROGRESS"):
            return ""
        ttl_ms = 24 * HOUR_MS if stored is None else stored.expires_ms - stored.reported_ms
        self.report(id_, "REVOKED", 0, b"revoked by request", ttl_ms)
        return "REVOKED"

    # Groups.

    def start(self, group_id: str, ttl_ms: int, epoch: int = 0) -> GroupModel:
        """A new run."""
        stone = self.group_stones.pop(group_id, None)
        group = GroupModel(epoch or (stone.version + 1 if stone else 1), ttl_ms)
        self.groups[group_id] = group
        self.touch(group)
        return group

    def touch(self, group: GroupModel) -> None:
        """A change puts off the expiry."""
        group.expires_ms = self.now_ms + group.ttl_ms

    def add(self, group_id: str, members: list[tuple[Member, int | None]]) -> list[int] | None:
        """Their indexes, or None where they are refused."""
        group = self.groups[group_id]
        named = {index for _, index in members if index is not None}
        places: dict[Member, list[int]] = {}
        wanted: list[tuple[Member, int | None]] = []
        for member, index in members:
            if index is None:
                mine = places.setdefault(
                    member,
                    sorted(i for i, m in group.members.items() if m == member and i not in named),
                )
                index = mine.pop(0) if mine else None
            wanted.append((member, index))
        if not self._fits(group_id, group, wanted):
            return None
        indexes: list[int] = []
        free = max([group.next_index, *(i + 1 for _, i in wanted if i is not None)])
        for member, index in wanted:
            if index is None:
                index, free = free, free + 1
            indexes.append(index)
            if index not in group.members:
                group.members[index] = member
                self.touch(group)
                self._settle_at(group_id, index, self._counts_as(member))
        return indexes

    def _fits(
        self, group_id: str, group: GroupModel, wanted: list[tuple[Member, int | None]]
    ) -> bool:
        taken = dict(group.members)
        for member, index in wanted:
            if index is not None and taken.setdefault(index, member) != member:
                return False
            new = index is None or index not in group.members
            if new and group.declared is not None:
                return False
            if new and member[0] == "group" and self._reaches(member[1], group_id):
                return False
        return True

    def _reaches(self, above: str, below: str) -> bool:
        if above == below:
            return True
        members = self.groups[above].members.values() if above in self.groups else ()
        return any(kind == "group" and self._reaches(id_, below) for kind, id_ in members)

    def _counts_as(self, member: Member) -> str:
        kind, id_ = member
        if kind == "group":
            group = self.groups.get(id_)
            return group.outcome if group is not None and group.complete else ""
        stored = self.tasks.get(id_)
        return stored.state if stored is not None and stored.state in TERMINAL else ""

    def _settle(self, member: Member, state: str) -> None:
        for group_id, group in list(self.groups.items()):
            for index, there in sorted(group.members.items()):
                if there == member and group.expires_ms > self.now_ms:
                    self._settle_at(group_id, index, state)

    def _settle_at(self, group_id: str, index: int, state: str) -> None:
        group = self.groups[group_id]
        before = group.counted.get(index)
        if not state or state == before or before == GONE or (before and state == GONE):
            return
        group.counted[index] = state
        self.touch(group)
        if group.complete:
            self._settle(("group", group_id), group.outcome)
        self.complete_if_due(group_id)

    def complete_if_due(self, group_id: str) -> None:
        """Sealed, full, all counted."""
        group = self.groups[group_id]
        if group.complete or not group.full or len(group.counted) < len(group.members):
            return
        group.complete = True
        self.touch(group)
        self._settle(("group", group_id), group.outcome)

    def seal(self, group_id: str, total: int | None) -> bool:
        """Whether it was taken."""
        group = self.groups[group_id]
        if group.declared is not None:
            return total in (None, group.declared)
        known = max(len(group.members) - group.added, 0)
        declared = known if total is None else total
        if declared + group.added < len(group.members):
            return False
        group.declared = declared
        self.touch(group)
        self.complete_if_due(group_id)
        return True

    def add_to_total(self, group_id: str, delta: int, request_id: str) -> bool:
        """Whether it was taken."""
        group = self.groups[group_id]
        if request_id in group.requests:
            return True
        if group.complete:
            return False
        group.requests.add(request_id)
        group.added += delta
        self.touch(group)
        return True

    def end(self, group_id: str, existence: str) -> None:
        """Deleted or expired."""
        group = self.groups.pop(group_id)
        self.group_stones[group_id] = Stone(existence, group.epoch, self.now_ms + HOUR_MS)
        if not group.complete:
            self._settle(("group", group_id), GONE)

    def claim(self, group_id: str, token: str, action: str, lease_ms: int) -> str:
        """The outcome."""
        group = self.groups[group_id]
        mine = bool(group.token) and group.token == token
        if action == "ACQUIRE":
            if not group.complete:
                return "INCOMPLETE"
            if group.done:
                return "DONE"
            if group.token and not mine and group.lease_ms > self.now_ms:
                return "HELD"
            group.token, group.lease_ms = token, self.now_ms + lease_ms
        elif action == "DONE":
            if not mine:
                return "DONE" if group.done else "LOST"
            if group.done:
                return "GRANTED"
            group.done = True
        else:
            if group.done:
                return "DONE"
            if not mine:
                return "LOST"
            group.token = ""
        self.touch(group)
        return "GRANTED"

    # Time.

    def sweep(self) -> None:
        """Everything that is due goes, groups first: their members wait for them."""
        for group_id in [g for g, group in self.groups.items() if group.expires_ms <= self.now_ms]:
            self.end(group_id, "EXPIRED")
        kept = {member for group in self.groups.values() for member in group.members.values()}
        for id_, stored in list(self.tasks.items()):
            if stored.expires_ms <= self.now_ms and ("task", id_) not in kept:
                self._bury(id_, "EXPIRED")
        for stones in (self.task_stones, self.group_stones):
            for id_ in [id_ for id_, stone in stones.items() if stone.until_ms <= self.now_ms]:
                del stones[id_]
