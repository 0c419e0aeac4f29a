"""The engine contract: conditional record operations, exact group counting, honest hints.

An engine keeps records durably and knows nothing of calls and streams. What it promises:

* what a writing method returned survives a power cut (not in `memory`);
* after that, record, group and completion log all show it; before, a reader may see
  some of it first;
* reports and group operations have the outcomes that the rules in `ledger` give;
* once `Subscription.add` has returned, any later change of the key is hinted, or a loss
  that covers it.

Nothing above may assume one machine, one transaction over two keys, or an order across
the store. Times are milliseconds since 1970, from the clock the engine was made with.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from resultd.v1 import group_pb2, group_service_pb2, result_service_pb2, worker_service_pb2
from resultd_server import limits
from resultd_server.engine.hints import Hub, Subscription
from resultd_server.errors import DomainError
from resultd_server.ledger.claiming import ClaimRequest
from resultd_server.ledger.groups import Declaration, NewMember
from resultd_server.ledger.listing import Page
from resultd_server.ledger.progress import Cursor, Step
from resultd_server.ledger.records import Record, Report
from resultd_server.ledger.usage import UNLIMITED, Allowance, Held
from resultd_server.tallies import Histogram

Clock = Callable[[], int]
StoreOutcome = bytes | DomainError
"""A serialized StoreResultResponse, or why there is none."""


class Swept(NamedTuple):
    """What a sweep did: steps taken, records and groups expired, groups incomplete."""

    steps: int
    expired: int
    expired_incomplete: int
    more: bool = False
    """Whether it ended before there was nothing to do."""


class Space(NamedTuple):
    """What a store on disk takes up."""

    live_bytes: int
    limit_bytes: int
    """How many live bytes it may have before it refuses to grow."""
    file_bytes: int
    disk_free_bytes: int
    readers: int
    readers_limit: int
    oldest_reader_transactions: int
    """How many transactions were committed since the oldest reader began: pages they
    freed cannot be used again before it ends."""


class EngineStats(NamedTuple):
    """What there is to say of an engine now; counts are since it was made."""

    commit_seconds: Histogram
    commit_operations: Histogram
    writes_queued: int = 0
    writes_queued_bytes: int = 0
    writing_s: float = 0.0
    """How long the writer has been at what it is at; 0 while it rests."""
    revocations: int = 0
    """Tasks named in revocations that were answered, ended and repeated ones included."""
    groups_incomplete: int = 0
    """Groups that expired before they were complete, found by sweeps and by who declared them
    again before."""
    held: Held | None = None
    allowance: Allowance = UNLIMITED
    space: Space | None = None


COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
COMMIT_OPERATIONS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500)


class Engine(abc.ABC):
    """A store. Every method takes the namespace first."""

    name: str
    store_id: str

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.hub = Hub()
        self.on_failure: Callable[[BaseException], None] | None = None
        #: Asked before what is large in an answer is read; None: it is read at once.
        self.make_room: Callable[[], Awaitable[None]] | None = None
        self._commit_seconds = Histogram(COMMIT_SECONDS)
        self._commit_operations = Histogram(COMMIT_OPERATIONS)

    @abc.abstractmethod
    async def start(self) -> None:
        """Opens the store. Raises DomainError or OSError where it cannot be used."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Finishes what is under way and closes the store."""

    def subscribe(self, namespace: str) -> Subscription:
        """Interest in keys, none yet."""
        return self.hub.subscribe(namespace)

    @abc.abstractmethod
    async def put(self, namespace: str, reports: Sequence[Report]) -> list[StoreOutcome]:
        """Applies reports in their order, each by itself; durable on return.

        Raises DomainError where not all could be tried: of them the first may have been applied,
        and are repeats when they come again.
        """

    @abc.abstractmethod
    async def get(
        self, namespace: str, task_ids: Sequence[str], *, budget_bytes: int | None = None
    ) -> list[Record]:
        """Records, or what is known about their absence, in the order asked for.

        The first of them only, at least one, where all would take more than the budget:
        so that a frame's worth is read for a frame.
        """

    @abc.abstractmethod
    async def delete(self, namespace: str, task_ids: Sequence[str]) -> int:
        """Forgets records, each by itself; how many there were. Tombstones stay an hour."""

    @abc.abstractmethod
    async def revoke(
        self, namespace: str, wishes: Sequence[worker_service_pb2.Revocation]
    ) -> list[int]:
        """Stores wishes to stop; for each the task's terminal state, or 0."""

    @abc.abstractmethod
    async def revoked(self, namespace: str, task_ids: Sequence[str]) -> list[bytes | None]:
        """Serialized Revocations, None where nobody asked."""

    @abc.abstractmethod
    async def group_create(self, namespace: str, declared: Declaration) -> group_pb2.GroupMeta:
        """Declares a group. Raises DomainError."""

    @abc.abstractmethod
    async def group_add(
        self, namespace: str, group_id: str, members: Sequence[NewMember]
    ) -> tuple[group_pb2.GroupMeta, list[int]]:
        """Adds members; the group and their indexes. Raises DomainError."""

    @abc.abstractmethod
    async def group_add_to_total(
        self, namespace: str, group_id: str, delta: int, request_id: str
    ) -> group_pb2.GroupMeta:
        """Raises the number expected, once per request. Raises DomainError."""

    @abc.abstractmethod
    async def group_seal(
        self, namespace: str, group_id: str, total: int | None
    ) -> group_pb2.GroupMeta:
        """Says how many members there will be. Raises DomainError."""

    @abc.abstractmethod
    async def group_get(
        self, namespace: str, group_id: str, *, brief: bool = False
    ) -> group_pb2.GroupMeta:
        """The group, or what is known about its absence. `brief`: no continuation and extra."""

    @abc.abstractmethod
    async def group_delete(self, namespace: str, group_id: str) -> bool:
        """Deletes the group; whether there was one."""

    @abc.abstractmethod
    async def group_claim(
        self, namespace: str, request: ClaimRequest
    ) -> group_service_pb2.ClaimGroupResponse:
        """Takes, finishes or gives back a claim. Raises GroupNotFound."""

    @abc.abstractmethod
    async def group_members(
        self, namespace: str, group_id: str, page_size: int, page_token: str
    ) -> Page:
        """A page of members by index. Raises GroupNotFound, FieldInvalid."""

    @abc.abstractmethod
    async def group_list(self, namespace: str, wanted: group_service_pb2.ListGroupsRequest) -> Page:
        """A page of groups by id. Raises FieldInvalid."""

    @abc.abstractmethod
    async def group_step(
        self,
        namespace: str,
        group_id: str,
        cursor: Cursor,
        count_max: int = limits.FRAME_EVENTS_MAX,
    ) -> Step:
        """The next frame of a stream over the group, of so many events at most."""

    @abc.abstractmethod
    async def scan(self, namespace: str, wanted: result_service_pb2.ListResultsRequest) -> Page:
        """A page of records. Raises FieldInvalid."""

    @abc.abstractmethod
    async def sweep(self, budget: int) -> Swept:
        """Deletes what has expired, in about `budget` steps, fewer where they are large."""

    def writing_s(self) -> float:
        """How long the writer has been at what it is at; 0 while it rests."""
        return 0.0

    @abc.abstractmethod
    def stats(self) -> EngineStats:
        """The engine's numbers now; cheap enough to be asked for every few seconds.

        Never raises: a store that has failed says what it last knew.
        """
