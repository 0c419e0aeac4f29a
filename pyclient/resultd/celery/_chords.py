"""Chords, on the server's own counting of groups.

Each part is its task's own report, which names the chord's group and the part's index; the
server counts it once, whoever repeats it. Whoever hears that the group is complete claims it,
publishes the body with all parts in order, and says that it is done. Should it die in between,
its lease runs out and any worker of the app takes over: the body lies with the group.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from celery.result import GroupResult
from kombu.exceptions import EncodeError
from kombu.serialization import dumps

from resultd import _records
from resultd._effects import Op
from resultd.celery._finishing import HEADER, LANE, BrokerAwayError, Claim, Finisher
from resultd.celery._parts_ahead import PartsAhead
from resultd.celery._records import ttl_fields
from resultd.errors import (
    GroupConflictError,
    GroupNotFoundError,
    GroupSealedError,
    GroupTotalMismatchError,
    ResultdError,
)
from resultd.v1 import (
    group_pb2,
    group_service_pb2,
    result_service_pb2,
    value_pb2,
)

if TYPE_CHECKING:
    from resultd.celery.backend import ResultdBackend

logger = logging.getLogger("resultd.celery")

LANES = 127
# Seconds a complete chord is left to whoever returned its last part. One whose claimant let
# its lease run out needs no more of them.
GRACE = 5.0
NOTICED_MAX = 64
# Pages of unfinished chords that one question asks for at most; the next one goes on there.
PAGES_MAX = 4


class Chords:
    """The chords of one backend's app."""

    def __init__(self, backend: ResultdBackend) -> None:
        self._backend = backend
        self._finisher = Finisher(backend)
        self._ahead = PartsAhead(backend.codec)
        self._returning = _Returning()
        # When each was first named, the least recently named first.
        self._noticed: dict[str, float] = {}
        self._page_token = ""

    # Publishing

    def declare(self, group_id: str, results: Any, body: Any) -> None:
        """Declare a chord's group; one of that name that is over begins a new epoch."""
        request = self._bare(group_id)
        continuation = self._encoded(body)
        if continuation is not None:
            request.continuation.CopyFrom(continuation)
            # Without the body others could take over nothing, and would be told of it for ever.
            request.claim_scope = self._backend.options.claim_scope
        # A generator is left alone, to be drawn from while its tasks are published. Celery's
        # wrapper of one derives from list: only a list itself is looked into.
        plain = type(results) in (list, tuple)
        if plain and any(isinstance(result, GroupResult) for result in results):
            header = self._backend.app.GroupResult(group_id, list(results))
            payload = self._backend.codec.encode(header.as_tuple(), squeeze=True)
            request.extra[HEADER].CopyFrom(payload)
        try:
            group = self._call("CreateGroup", request).group
        except GroupConflictError:  # it was sealed with another body
            over = True
        else:
            over = group.counts.complete
        if over:
            # The frozen chord is applied again. A repeat of this call does no harm: no part
            # of the new run has been published yet.
            request.new_epoch = True
            self._call("CreateGroup", request)

    def _encoded(self, body: Any) -> value_pb2.Payload | None:
        app = self._backend.app
        try:
            content_type, _, data = dumps(dict(body), serializer=app.conf.task_serializer)
        except EncodeError:
            logger.warning(
                "the body of a chord cannot be written as %s and is not stored with its group: "
                "should the worker that is to publish it die, no other can",
                app.conf.task_serializer,
            )
            return None
        raw = data.encode() if isinstance(data, str) else bytes(data)
        return value_pb2.Payload(content_type=content_type, data=raw)

    def set_size(self, group_id: str, size: int) -> None:
        """Say how many parts a chord has."""
        request = group_service_pb2.SealGroupRequest(group_id=group_id, expected_total=size)
        try:
            group = self._call("SealGroup", request).group
        except GroupNotFoundError:
            self._call("CreateGroup", self._bare(group_id))
            group = self._call("SealGroup", request).group
        except GroupTotalMismatchError as error:
            # A group inside the header's chain is applied by a worker and announces its own
            # tasks only; the header's size, announced first, counts them already.
            logger.debug("chord %s keeps the size it was announced with: %s", group_id, error)
            return
        if group.counts.complete:  # all parts were back before
            self._finish_or_leave(Claim(self._backend, group_id))

    def _bare(self, group_id: str) -> group_service_pb2.CreateGroupRequest:
        return group_service_pb2.CreateGroupRequest(
            group_id=group_id, **ttl_fields(self._backend.chord_expires)
        )

    def add(self, group_id: str, task_id: str) -> None:
        """Expect one more part."""
        request = group_service_pb2.AddToTotalRequest(
            group_id=group_id, delta=1, request_id=task_id
        )
        try:
            self._call("AddToTotal", request)
        except GroupNotFoundError:
            self._call("CreateGroup", self._bare(group_id))
            self._call("AddToTotal", request)
        except GroupSealedError:
            logger.warning("chord %s is complete: task %s comes too late", group_id, task_id)

    # Returning parts

    @contextlib.contextmanager
    def returning(self) -> Iterator[None]:
        """Let results stored inside count as their tasks' parts: they are final."""
        self._returning.depth += 1
        try:
            yield
        finally:
            self._returning.depth -= 1
            if not self._returning.depth:
                self._give_back()

    def _give_back(self) -> None:
        """Give back what parts claimed, or may have, that Celery did not return after all."""
        self._returning.parts.clear()
        claims = self._returning.claims
        while claims:
            _, claim = claims.popitem()
            if claim.may_be_ours:
                claim.release()

    def join_in(self, store: result_service_pb2.StoreResultRequest, request: Any) -> Claim | None:
        """Make a result that is being stored its chord's part, if it is one.

        It asks for the claim as well, should it be the last: `joined` is to hear of it.
        """
        if not self._returning.depth or not getattr(request, "chord", None):
            return None
        if request.id != store.meta.task_id or not request.group:
            return None
        return self._place(store, request)

    def joined(
        self,
        store: result_service_pb2.StoreResultRequest,
        answer: result_service_pb2.StoreResultResponse,
        claim: Claim,
    ) -> None:
        """Keep what the server said to a part, for `part_returned` in this thread."""
        key = (store.meta.task_id, store.meta.group_id)
        self._returning.parts[key] = self._find_place(store, answer, claim)

    def _place(self, store: result_service_pb2.StoreResultRequest, request: Any) -> Claim:
        store.meta.group_id = request.group
        index = getattr(request, "group_index", None)
        if index is not None:
            store.meta.index = index
        # Stored again, after an answer that was lost, it has the claim that it had then.
        claims, key = self._returning.claims, (request.id, request.group)
        claim = claims.get(key) or claims.setdefault(key, Claim(self._backend, request.group))
        claim.ask_with(store, self._ahead.of(request.group))
        return claim

    def part_returned(self, request: Any, state: str, result: Any) -> None:
        """Count a part, unless storing its result did; finish the chord if it is complete.

        Inside `returning`.
        """
        task_id, group_id = request.id, request.group
        if not task_id or not group_id:
            return
        part = self._returning.parts.pop((task_id, group_id), None)
        if part is None:
            store = self._backend.part_report(task_id, result, state, request)
            claim = self._place(store, request)
            part = self._find_place(store, self._backend.send(store), claim)
        self._returning.claims.pop((task_id, group_id), None)
        if part.complete:
            self._ahead.drop(group_id)
            self._finish_or_leave(part.claim, request.chord)

    def _find_place(
        self,
        store: result_service_pb2.StoreResultRequest,
        answer: result_service_pb2.StoreResultResponse,
        claim: Claim,
    ) -> _Part:
        """Have a part stand where another of its index does not; what is known of it then."""
        lane = 0
        while answer.membership == result_service_pb2.MEMBERSHIP_INDEX_TAKEN and lane < LANES:
            lane += 1
            store.meta.index += LANE
            answer = self._backend.send(store)
        if answer.membership in (
            result_service_pb2.MEMBERSHIP_SEALED,
            result_service_pb2.MEMBERSHIP_NOT_A_MEMBER,
        ):
            logger.warning(
                "task %s is no part of chord %s (any more): %s",
                store.meta.task_id,
                store.meta.group_id,
                _records.enum_name(result_service_pb2.Membership, answer.membership),
            )
        claim.hear(answer)
        # An answer that had no room names nothing; one that names many may leave it out.
        complete = store.meta.group_id in answer.complete_group_ids
        return _Part(complete or answer.groups_omitted or claim.granted, claim)

    # Finishing

    def _finish_or_leave(self, claim: Claim, callback: Any = None) -> None:
        """Finish a chord; leave it to others if the server or the broker went away meanwhile."""
        group_id = claim.group_id
        try:
            self._finisher.finish(claim, callback)
        except ResultdError as error:
            if not error.retryable:
                raise
            logger.exception(
                "chord %s is complete, but the server went away before its body was published: "
                "another worker will do that",
                group_id,
            )
        except BrokerAwayError as error:
            logger.warning(
                "chord %s is complete, but its body cannot be published now, which is tried "
                "again later: %s",
                group_id,
                error,
            )

    def finish(self, group_id: str, callback: Any = None) -> bool:
        """Publish a complete chord's body, unless somebody else does; whether it was done here.

        Without `callback` the body that lies with the group is taken.
        """
        return self._finisher.finish(Claim(self._backend, group_id), callback)

    # Taking over

    def notice(self, group_ids: Iterable[str]) -> None:
        """Hear of complete chords that nobody works on; take over those that stay so."""
        now = time.monotonic()
        for group_id in group_ids:
            since = self._noticed.pop(group_id, now)
            if now - since >= GRACE:
                self._take_over(group_id)
            else:
                self._noticed[group_id] = since
        while len(self._noticed) > NOTICED_MAX:
            self._noticed.pop(next(iter(self._noticed)), None)

    def ask(self) -> bool:
        """Look for such chords, in short calls; whether there are any to look at again."""
        left: list[str] = []
        for group in self._unfinished():
            if group.claim.holder:  # claimed, and its lease has run out
                self._take_over(group.group_id)
            else:
                left.append(group.group_id)
        self.notice(left)
        return any(group_id in self._noticed for group_id in left)

    def _unfinished(self) -> list[group_pb2.GroupMeta]:
        client = self._backend.client
        request = group_service_pb2.ListGroupsRequest(
            claimable=True,
            claim_scope=self._backend.options.claim_scope,
            page_token=self._page_token,
        )
        found: list[group_pb2.GroupMeta] = []
        try:
            for _ in range(PAGES_MAX):
                response = client.run(
                    client.operations.call("ListGroups", request, once=True, limit=1.0)
                )
                found += response.groups
                request.page_token = response.next_page_token
                if not request.page_token:
                    break
        except ResultdError as error:
            logger.debug("no answer about unfinished chords: %s", error)
            if not error.retryable:
                request.page_token = ""  # another server's, perhaps
        self._page_token = request.page_token
        return found

    def _take_over(self, group_id: str) -> None:
        try:
            if self.finish(group_id):
                logger.warning("chord %s was left unfinished by another: done here", group_id)
        except (ResultdError, BrokerAwayError) as error:
            logger.warning("chord %s cannot be taken over now: %s", group_id, error)
        except Exception:  # whatever is wrong with it: who came by has other work to do
            logger.exception("chord %s cannot be taken over", group_id)

    def _call(self, method: str, request: Any, limit: float | None = None) -> Any:
        client = self._backend.client
        op: Op[Any] = client.operations.call(method, request, limit=limit)
        return client.run(op)


class _Part(NamedTuple):
    """A part that was stored: whether its chord may be complete, and the claim it asked for."""

    complete: bool
    claim: Claim


class _Returning(threading.local):
    """What one thread is doing: how deep it is in final results, the parts it stored there.

    And the claims they asked for, by task and group, until they are returned.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.parts: dict[tuple[str, str], _Part] = {}
        self.claims: dict[tuple[str, str], Claim] = {}
