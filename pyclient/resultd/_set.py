"""What a set of results is and does, for threads and asyncio alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from resultd import _blocking, states
from resultd._deadline import Deadline
from resultd._effects import Emit, Op, each, spread
from resultd._pending import Pending
from resultd._promise import Promise
from resultd._result import Meta, ResultBase, ResultCore, forget_all, revoke_all

if TYPE_CHECKING:
    from resultd._core import ClientCore


class Member(NamedTuple):
    """A member of a set as it was when an operation began.

    A set may change while it is waited for, in a callback or in another thread: whoever waits
    goes by what was taken at the beginning, nested sets included, and by nothing else.
    """

    result: Any
    #: Of a nested set what it held; None for the result of a task.
    inner: list[Member] | None

    def leaves(self) -> list[ResultCore]:
        """Return the results of single tasks in it, at any depth."""
        if self.inner is None:
            return [self.result]
        return [leaf for member in self.inner for leaf in member.leaves()]


class SetCore(ResultBase):
    """Results that are asked about together: one read, one stream, whatever their number.

    What an operation is about is what is in the set when it begins.
    """

    results: Any = None

    def __init__(
        self, results: Iterable[Any], app: Any = None, ready_barrier: Any = None, **kwargs: Any
    ) -> None:
        self._app = app
        self.results = results if isinstance(results, list) else list(results)
        self._unheard: list[None] = []

    # Membership

    def add(self, result: Any) -> None:
        """Add a result; nothing happens if it is a member."""
        if result not in self.results:
            self.results.append(result)

    def remove(self, result: Any) -> None:
        """Remove a result, or the one of this id.

        Raises:
            KeyError: it is not a member.
        """
        try:
            self.results.remove(result)
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: Any) -> None:
        """Remove a result if it is a member."""
        if result in self.results:
            self.results.remove(result)

    def update(self, results: Iterable[Any]) -> None:
        """Add each that is not a member yet."""
        for result in results:
            self.add(result)

    def clear(self) -> None:
        """Remove all results; none is forgotten."""
        self.results[:] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SetCore):
            return bool(other.results == self.results)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # sets change, as lists do

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(map(_name, self.results))}]>"

    @property
    def app(self) -> Any:
        """What the set was given as app, else what its first result was; may be assigned."""
        if self._app is None:
            self._app = next((first.app for first in self.results[:1]), None)
        return self._app

    @app.setter
    def app(self, app: Any) -> None:
        self._app = app

    @property
    def backend(self) -> Any:
        """The client."""
        if self._app is not None:
            return getattr(self._app, "backend", self._app)
        for leaf in self._leaves():
            if leaf.backend is not None:
                return leaf.backend
        return self._default_backend()

    def _default_backend(self) -> Any:
        return None

    @property
    def supports_native_join(self) -> bool | None:
        """Whether the first result's client does; None for an empty set."""
        return next((first.supports_native_join for first in self.results[:1]), None)

    @property
    def _client(self) -> ClientCore:
        return self.backend  # type: ignore[no-any-return]  # Celery's name for what it is here

    def _leaves(self) -> list[ResultCore]:
        """Return the results of single tasks, those of nested sets included."""
        return leaves(self.results)

    def _members(self) -> list[Member]:
        """Return what is in the set now, for an operation to go by."""
        return taken(self.results)

    # What needs the server: operations

    def _refresh(self, members: list[Member]) -> Op[list[tuple[ResultCore, Meta | None]]]:
        """Read what is not known to be ready; gives each leaf and what is known of it."""
        found = _leaves_of(members)
        known = [(leaf, leaf._cache) for leaf in found]
        if all(meta is not None for _, meta in known):
            return known
        pending = Pending(self._client, found)
        yield from pending.read(Deadline(None))
        return [(leaf, pending.metas.get(id(leaf))) for leaf in found]

    def _is_ready(self) -> Op[bool]:
        return all(meta is not None for _, meta in (yield from self._refresh(self._members())))

    def _count(self, state: str) -> Op[int]:
        known = yield from self._refresh(self._members())
        return sum(_is_in(meta, state) for _, meta in known)

    def _is_successful(self) -> Op[bool]:
        known = yield from self._refresh(self._members())
        return all(_is_in(meta, states.SUCCESS) for _, meta in known)

    def _completed(self) -> Op[int]:
        members = self._members()
        known = yield from self._refresh(members)
        good = {id(leaf) for leaf, meta in known if _is_in(meta, states.SUCCESS)}
        return sum(all(id(leaf) in good for leaf in member.leaves()) for member in members)

    def _children(self) -> Op[list[Any]]:
        yield from ()
        return self.results  # type: ignore[no-any-return]  # typed above

    def _maybe_throw(
        self, callback: Callable[[str, Any], object] | None, propagate: bool
    ) -> Op[None]:
        for leaf, _ in (yield from self._refresh(self._members())):
            yield from leaf._maybe_throw(propagate, callback)

    def _get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float | None = 0.5,
        callback: Callable[[str, Any], object] | None = None,
        no_ack: bool = True,
        on_message: Callable[[Meta], object] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> Op[list[Any] | None]:
        join = self._join_native if self.supports_native_join else self._join
        return (
            yield from join(
                timeout=timeout,
                propagate=propagate,
                interval=interval,
                callback=callback,
                on_message=on_message,
                disable_sync_subtasks=disable_sync_subtasks,
                on_interval=on_interval,
            )
        )

    def _join(
        self,
        timeout: float | None,
        propagate: bool,
        interval: float | None,
        callback: Callable[[str, Any], object] | None,
        on_message: Callable[[Meta], object] | None,
        disable_sync_subtasks: bool,
        on_interval: Callable[[], object] | None,
    ) -> Op[list[Any]]:
        """Give the values in the set's order; a failure is raised when its turn comes."""
        if disable_sync_subtasks:
            _blocking.assert_will_not_block()
        deadline = Deadline(timeout)
        values: list[Any] = []
        members = self._members()
        pending = self._pending(members, on_message, on_interval, interval)
        try:
            for member in members:
                mine = member.leaves()
                while any(id(leaf) not in pending.metas for leaf in mine):
                    yield from pending.next(deadline)
                value = _value(member, propagate, pending)
                if callback is None:
                    values.append(value)
                else:
                    callback(member.result.id, value)
        finally:
            pending.close()
        return values

    def _join_native(
        self,
        timeout: float | None,
        propagate: bool,
        interval: float | None,
        callback: Callable[[str, Any], object] | None,
        on_message: Callable[[Meta], object] | None,
        on_interval: Callable[[], object] | None,
        disable_sync_subtasks: bool,
    ) -> Op[list[Any] | None]:
        """Give the values in the set's order; a failure is raised as soon as it arrives.

        With a callback: calls it in the order of completion and gives None.
        """
        if disable_sync_subtasks:
            _blocking.assert_will_not_block()
        members = self._members()
        values: list[Any] = [None] * len(members)
        pending = self._pending(members, on_message, on_interval, interval)

        def use(item: tuple[int, Member]) -> None:
            index, member = item
            values[index] = _value(member, propagate, pending)
            if callback is not None:
                callback(member.result.id, values[index])

        yield from each(_as_completed(members, pending, timeout), use)
        return values if callback is None else None

    def _iter_native(
        self,
        timeout: float | None,
        interval: float | None,
        on_message: Callable[[Meta], object] | None,
        on_interval: Callable[[], object] | None,
    ) -> Op[None]:
        """Emit (id, meta) as tasks complete; of a nested set its id and its results."""
        members = self._members()
        pending = self._pending(members, on_message, on_interval, interval)

        def outcome(item: tuple[int, Member]) -> Iterator[tuple[Any, Any]]:
            result, inner = item[1]
            if inner is None:
                yield result.id, pending.metas[id(result)]
            else:
                yield getattr(result, "id", None), [member.result for member in inner]

        yield from spread(_as_completed(members, pending, timeout), outcome)

    def _iterate(self, timeout: float | None, propagate: bool, interval: float | None) -> Op[None]:
        """Emit values as tasks complete."""
        members = self._members()
        pending = self._pending(members, None, None, interval)
        op = _as_completed(members, pending, timeout)
        yield from spread(op, lambda item: [_value(item[1], propagate, pending)])

    def _pending(
        self,
        members: list[Member],
        on_message: Callable[[Meta], object] | None,
        on_interval: Callable[[], object] | None,
        interval: float | None,
    ) -> Pending:
        return Pending(
            self._client,
            _leaves_of(members),
            on_message=on_message,
            on_interval=on_interval,
            interval=interval,
        )

    def _forget(self) -> Op[None]:
        yield from forget_all(self._client, self._leaves())

    def _revoke(
        self, terminate: bool, signal: object, wait: bool, timeout: float | None
    ) -> Op[None]:
        found = [leaf for leaf in self._leaves() if leaf.backend is not None]
        yield from revoke_all(self._client, found, terminate, signal, wait, timeout)

    # Callbacks

    @property
    def on_ready(self) -> Promise:
        """The promise behind `then()`."""
        return self.__dict__.setdefault("_on_ready", Promise())  # type: ignore[no-any-return]  # typed above

    def then(
        self,
        callback: Callable[[Any], object],
        on_error: Callable[[BaseException], object] | None = None,
        weak: bool = False,
    ) -> Promise:
        """Call `callback(set)` once every result that is in it now is ready; see AsyncResult."""
        promise = self.on_ready
        if promise.ready and any(leaf._cache is None for leaf in self._leaves()):
            promise.renew()  # some have been forgotten since, or added
        promise.then(callback, on_error)
        if self._unheard:
            for leaf in self._leaves():
                if leaf._callback is not None:
                    leaf._callback.join()  # after a fork nobody listens in the child
        elif promise.has_listeners:
            found = list({id(leaf): leaf for leaf in self._leaves()}.values())
            # One more than there are: nothing is fulfilled before all have been asked.
            self._unheard.extend([None] * (len(found) + 1))
            for leaf in found:
                leaf.then(self._one_ready, promise.throw, weak)
            self._one_ready(None)
        return promise

    def _one_ready(self, _: Any) -> None:
        # From several threads at once: pop() is one step, and whoever finds the list empty
        # fulfils a promise that takes it once.
        self._unheard.pop()
        if not self._unheard:
            self.on_ready(self)


def taken(results: Iterable[Any]) -> list[Member]:
    """Take what is among results now, and in the sets among them."""
    # A copy first, in one step: other threads may add and remove.
    return [
        Member(result, taken(result.results) if isinstance(result, SetCore) else None)
        for result in list(results)
    ]


def leaves(results: Iterable[Any]) -> list[ResultCore]:
    """Return the results of single tasks among results and sets of results."""
    return _leaves_of(taken(results))


def _leaves_of(members: Iterable[Member]) -> list[ResultCore]:
    return [leaf for member in members for leaf in member.leaves()]


def _as_completed(members: list[Member], pending: Pending, timeout: float | None) -> Op[None]:
    """Emit (index, member) as members complete; a nested set when all of it has."""
    deadline = Deadline(timeout)
    left, owners = _owners(members)
    for index, count in enumerate(left):
        if count == 0:  # an empty set, nested
            yield Emit((index, members[index]))
    try:
        while pending:
            for leaf in (yield from pending.next(deadline)):
                for index in owners[id(leaf)]:
                    left[index] -= 1
                    if left[index] == 0:
                        yield Emit((index, members[index]))
    finally:
        pending.close()


def _owners(members: list[Member]) -> tuple[list[int], dict[int, list[int]]]:
    """Say how many leaves each member waits for, and which members wait for each leaf."""
    left: list[int] = []
    owners: dict[int, list[int]] = {}
    for index, member in enumerate(members):
        mine = {id(leaf) for leaf in member.leaves()}
        left.append(len(mine))
        for key in mine:
            owners.setdefault(key, []).append(index)
    return left, owners


def _value(member: Member, propagate: bool, pending: Pending) -> Any:
    """Return or raise what a complete member holds; of a nested set the list of its values."""
    result, inner = member
    if inner is not None:
        return [_value(each, propagate, pending) for each in inner]
    return result._outcome(pending.metas[id(result)], propagate)


def _is_in(meta: Meta | None, state: str) -> bool:
    return meta is not None and meta["status"] == state


def _name(result: Any) -> str:
    return str(getattr(result, "id", None) or result)
