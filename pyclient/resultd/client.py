"""The client for threads.

    client = resultd.Client("resultd://127.0.0.1:7758")     # opens nothing until first used
    client.store_result("t1", {"sum": 30})
    client.AsyncResult("t1").get(timeout=10)

All threads of a process may share a client. Clients of one address share a connection, and
all waits of the process one stream. After a fork both sides go on by themselves.
"""

from __future__ import annotations

import datetime
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from resultd import _core, _effects, _fork, results
from resultd._core import ClientCore, ReturnWhen, ServerInfo, WaitOutcome, ids_of
from resultd._effects import Op, Open
from resultd._group_handle import ClaimOutcome, GroupHandleCore, GroupInfo, Order
from resultd._iterate import MemberResult
from resultd._operations import RevokeOutcome
from resultd._records import Report, StoreOutcome
from resultd._revocations import Revocation, Revocations, tell
from resultd._watcher import Watcher
from resultd.errors import ClientClosedError
from resultd.serialization import Registry
from resultd.v1 import group_pb2

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from resultd._channel import Endpoint
    from resultd._records import ReportFields

__all__ = ["Client", "Group", "RevocationWatch", "default_client"]


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _renew_locks() -> None:
    # At the fork another thread may have held one, and it does not exist in the child.
    for client in _clients:
        client._opening = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class Client(ClientCore):
    """A server, from a program that blocks.

    Args:
        url: `resultd://host:7758/namespace?timeout=5`, `resultds://` for TLS,
            `resultd+unix:///path.sock`; `RESULTD_URL`, else 127.0.0.1:7758, if None.
        serializer: name of the registered serializer that values are written with.
        serializers: what is read and written, and which exceptions come back as themselves.

    A pickled client carries the address it was given, with a token in it, and the registry it was
    given, which has to be one that can be pickled then. Its `repr` shows no secret.

    Raises:
        ValueError: the address is not one.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        serializer: str = "json",
        serializers: Registry | None = None,
    ) -> None:
        super().__init__(url, serializer=serializer, serializers=serializers)
        self._own_registry = serializers
        self._endpoint: Endpoint | None = None
        self._opening = threading.Lock()
        _clients.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._url_text, self.operations.serializer, self._own_registry)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, unless another client of this address uses it.

        What waits for this one is told `ClientClosedError`. A call that is under way on a
        connection that goes on comes to its end.
        """
        with self._opening:
            self.owner.closed = True
            endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            from resultd import _channel

            _channel.release(endpoint, self.owner)

    # Storing

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str = "SUCCESS",
        **fields: Unpack[ReportFields],
    ) -> StoreOutcome:
        """Store what happened to a task; durable when this returns.

            client.store_result("t1", {"sum": 30})
            client.store_result("t2", error, "FAILURE")
            client.store_result("t3", {"current": 3, "total": 10}, "PROGRESS")

        The keyword arguments are those of `Report`: traceback, attempt, children, parent_id,
        root_id, group_id, index, progress, ttl, name, args, kwargs, worker, queue, retries,
        labels, claim_scope, claim.

        Raises:
            SerializationError: the value cannot be encoded.
            InvalidArgumentError: the server refuses a field; ValueTooLargeError: its size.
            QuotaExceededError: the namespace may hold no more; tried until the url's `timeout`.
            StoreFullError: the store takes no more; tried as long.
        """
        return self.run(self.operations.store(Report(task_id, result, state, **fields)))

    def store_results(
        self, reports: Iterable[Report | Mapping[str, Any] | tuple[Any, ...]]
    ) -> list[StoreOutcome]:
        """Store any number of reports in few calls; each has an outcome, or error, of its own.

        A report is a `Report`, a mapping of its fields, or (task_id, result[, state]). One that is
        refused has its reason in `error`, a `QuotaExceededError` for one that is too much for the
        namespace; where that is `retryable` it may be stored later, which is left to the caller.

        Raises:
            UnavailableError: nobody answered; what was sent before is stored.
            StoreFullError: the store took none of a call; what was sent before is stored.
        """
        return self.run(self.operations.store_many(reports))

    # Results

    def AsyncResult(  # noqa: N802 (Celery's name)
        self,
        id: str,  # noqa: A002 (Celery's name)
        parent: Any = None,
    ) -> results.AsyncResult:
        """Return the result of a task; nothing is asked yet."""
        return results.AsyncResult(id, self, None, self, parent)

    def ResultSet(self, results_: Iterable[Any]) -> results.ResultSet:  # noqa: N802  (Celery's name)
        """Return a set of results."""
        return results.ResultSet(list(results_), app=self)

    def GroupResult(  # noqa: N802 (Celery's name)
        self,
        id: str | None = None,  # noqa: A002 (Celery's name)
        results_: Iterable[Any] = (),
        parent: Any = None,
    ) -> results.GroupResult:
        """Return a group of results; it is not on the server before `save()`."""
        return results.GroupResult(id, list(results_), parent, app=self)

    def restore_group(self, id: str) -> results.GroupResult | None:  # noqa: A002  (Celery's name)
        """Return the group saved under an id, None if there is none."""
        group: results.GroupResult | None = self.run(self.groups.restore(id))
        return group

    def group(self, id: str) -> Group:  # noqa: A002 (as everywhere)
        """Return a handle on a group of any size; nothing is asked yet."""
        return Group(self, id)

    def as_completed(
        self, results: Iterable[Any], timeout: float | None = None
    ) -> Iterator[results.AsyncResult]:
        """Iterate over results as they become ready, failed ones included.

        Raises:
            TimeoutError: not all were ready in time.
        """
        return self.iterate(self._completed(results, timeout))

    def wait(
        self,
        results: Iterable[Any],
        return_when: ReturnWhen = _core.ALL_COMPLETED,
        timeout: float | None = None,
    ) -> WaitOutcome:
        """Wait for results; gives (done, pending) and never raises for the time.

        `return_when` is "ALL_COMPLETED", "FIRST_COMPLETED" or "FIRST_EXCEPTION".
        """
        return self.run(self._wait(results, return_when, timeout))

    def forget(self, results: Any) -> int:
        """Delete records, given as ids or results; gives how many there were."""
        return self.run(self.operations.forget(ids_of(results)))

    def revoke(
        self,
        results: Any,
        terminate: bool = False,
        signal: Any = None,
        reason: str = "",
    ) -> RevokeOutcome:
        """Ask that tasks be stopped, given as ids or results."""
        return self.run(self.operations.revoke(ids_of(results), terminate, signal, reason))

    # Looking around

    def list_results(
        self,
        states: Iterable[str] = (),
        name: str = "",
        group_id: str = "",
        since: datetime.datetime | float | None = None,
        page_size: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Iterate over the metas of all records that match, by id."""
        return self.iterate(self._list_results(states, name, group_id, since, page_size))

    def list_groups(
        self,
        incomplete: bool = False,
        claimable: bool = False,
        unchanged_since: datetime.datetime | float | None = None,
        claim_scope: str = "",
        page_size: int = 0,
    ) -> Iterator[group_pb2.GroupMeta]:
        """Iterate over all groups that match, by id."""
        return self.iterate(
            self._list_groups(incomplete, claimable, unchanged_since, claim_scope, page_size)
        )

    def server_info(self) -> ServerInfo:
        """Ask who answers."""
        return self.run(self._server_info())

    def watch_revocations(
        self,
        task_ids: Iterable[str] = (),
        callback: Callable[[Revocation], object] | None = None,
    ) -> RevocationWatch:
        """Hear of tasks that are to stop, as a worker that runs them.

            with client.watch_revocations(["t1"]) as watch:
                watch.add(["t2"])
                for revocation in watch: ...

        With `callback` it is called from a thread of its own instead.
        """
        return RevocationWatch(self, task_ids, callback)

    # Driving operations

    def run(self, op: Op[_effects.T]) -> _effects.T:
        """Drive an operation; not for users."""
        return _effects.run(op, self._handle)

    def iterate(self, op: Op[None]) -> Iterator[Any]:
        """Drive an operation that emits values; not for users."""
        return _effects.iterate(op, self._handle)

    def watcher(self) -> Watcher:
        """Return what waits for this client; not for users."""
        return self._open().watcher

    def _handle(self, effect: _effects.Effect) -> Any:
        outcome = self._open().handle(effect)
        if type(effect) is Open:
            outcome.owner = self.owner  # should we be closed by now, the next effect is refused
        return outcome

    def _open(self) -> Endpoint:
        endpoint = self._endpoint
        if endpoint is not None:
            return endpoint
        # Who forks meanwhile waits: in the child an import that is under way never ends.
        with _fork.gate:
            from resultd import _channel
        with self._opening:
            if self.owner.closed:
                raise ClientClosedError
            if self._endpoint is None:
                self._endpoint = _channel.acquire(self.url)
            return self._endpoint


class Group(GroupHandleCore):
    """A group on the server, of any size, held by its name only.

    group = client.group("g1").create(f"t{i}" for i in range(1_000_000))
    for value in group.iterate(timeout=600): ...
    """

    client: Client

    def create(
        self,
        members: Iterable[Any] = (),
        *,
        continuation: Any = None,
        claim_scope: str = "",
        ttl: float | datetime.timedelta | None = None,
        labels: Mapping[str, str] | None = None,
        seal: bool = True,
        new_epoch: bool = False,
    ) -> Group:
        """Declare the group with its members: ids, results or groups, of any number.

        Raises:
            GroupConflictError: it exists with other members at these indexes.
            GroupSealedError, GroupTotalMismatchError: it is sealed with fewer, or others.
        """
        self.client.run(
            self._create(members, continuation, claim_scope, ttl, labels, seal, new_epoch)
        )
        return self

    def add(self, members: Iterable[Any], start: int | None = None) -> GroupInfo:
        """Add members, from index `start`, or from the next free one if None.

        With `start` a repeat adds nothing twice, so the call is tried again where that helps.
        """
        return self.client.run(self._add(members, start))

    def add_to_total(self, delta: int, request_id: str | None = None) -> GroupInfo:
        """Expect more members; a repeat with the same `request_id` adds nothing."""
        return self.client.run(self._add_to_total(delta, request_id))

    def seal(self, total: int | None = None) -> GroupInfo:
        """Say how many members there will be; as many as are known if None."""
        return self.client.run(self._seal(total))

    def get_info(self) -> GroupInfo:
        """Read the group's numbers."""
        return self.client.run(self._read())

    def exists(self) -> bool:
        """Say whether there is such a group."""
        return self.get_info().exists

    def ready(self) -> bool:
        """Say whether it is complete."""
        return self.get_info().complete

    def members(self) -> Iterator[group_pb2.GroupMember]:
        """Iterate over the members by index, a page at a time."""
        return self.client.iterate(self._members())

    def as_completed(
        self,
        timeout: float | None = None,
        *,
        order: Order = "completed",
        require_known: bool = False,
    ) -> Iterator[MemberResult]:
        """Iterate over members as they are done, with index, id, state and result.

        `order="member"` goes by index and stops at the lowest that is not done. A group that
        does not exist yet is waited for unless `require_known`.

        `timeout=0` gives what is done by now. The time is looked at between frames of up to 480
        members, not while the members of one are worked on.

        Raises:
            TimeoutError: the group was not complete in time.
            GroupNotFoundError: `require_known`, and there is no such group.
            ResultGoneError: the group was deleted or expired.
        """
        return self.client.iterate(self._as_completed(timeout, order, require_known))

    def iterate(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        order: Order = "completed",
        require_known: bool = False,
    ) -> Iterator[Any]:
        """Iterate over values as members are done; raises as `as_completed`, and the tasks'."""
        return self.client.iterate(self._iterate(timeout, propagate, order, require_known))

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *,
        require_known: bool = False,
    ) -> list[Any]:
        """Wait for all and return the values by index; raises as `iterate`.

        They are of one run: of the last, if the group is run again meanwhile.
        """
        return self.client.run(self._get(timeout, propagate, require_known))

    def delete(self) -> bool:
        """Delete the group, not its members' records; says whether there was one."""
        return self.client.run(self._delete())

    def claim(
        self, token: str | None = None, lease: float | None = None, holder: str = ""
    ) -> ClaimOutcome:
        """Take the exclusive right to act on the complete group, or renew it by its token.

        `lease` is in seconds, 30 if None. Keep `token` of the answer: `claim_done` needs it.
        """
        return self.client.run(self._claim("ACQUIRE", token, lease, holder))

    def claim_done(self, token: str) -> ClaimOutcome:
        """Say that the group was acted on, for good. The answer lacks continuation and extra."""
        return self.client.run(self._claim("DONE", token, None, ""))

    def claim_release(self, token: str) -> ClaimOutcome:
        """Give the right back, undone. The answer lacks continuation and extra."""
        return self.client.run(self._claim("RELEASE", token, None, ""))


class RevocationWatch:
    """What `watch_revocations` returns: iterate over it, or let it call back."""

    def __init__(
        self,
        client: Client,
        task_ids: Iterable[str],
        callback: Callable[[Revocation], object] | None,
    ) -> None:
        bell = client.watcher().port.new_mailbox()
        self._revocations = Revocations(task_ids, client.url.heartbeat, bell)
        self._iterator = client.iterate(self._revocations.listen())
        if callback is not None:
            # A daemon: a worker that ends does not wait for what it would be told.
            threading.Thread(
                target=self._call_back, args=(callback,), name="resultd-revoked", daemon=True
            ).start()

    def add(self, task_ids: Iterable[str]) -> None:
        """Run more tasks."""
        self._revocations.add(task_ids)

    def remove(self, task_ids: Iterable[str]) -> None:
        """Run tasks no longer."""
        self._revocations.remove(task_ids)

    def close(self) -> None:
        """Listen no longer; an iteration ends."""
        self._revocations.close()

    def __iter__(self) -> Iterator[Revocation]:
        return self._iterator

    def __enter__(self) -> RevocationWatch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _call_back(self, callback: Callable[[Revocation], object]) -> None:
        try:
            for revocation in self._iterator:
                tell(callback, revocation)
        except ClientClosedError:
            # The client was closed right after the watch, before this thread had seen it.
            if not self._revocations.closed:
                raise


def _rebuild(url: str | None, serializer: str, registry: Registry | None) -> Client:
    return Client(url, serializer=serializer, serializers=registry)


_default: Client | None = None


def default_client() -> Client:
    """Return the process's client for `RESULTD_URL`, made on first use."""
    global _default
    if _default is None:
        _default = Client()
    return _default
