"""The result of a task that was run in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from resultd import _blocking, states
from resultd._effects import Op
from resultd._result import Meta
from resultd.errors import TaskRevokedError
from resultd.results import AsyncResult


class EagerResult(AsyncResult):
    """The result of a task that was run here and now; nothing is asked of a server."""

    def __init__(
        self,
        id: str,  # noqa: A002 (Celery's name)
        ret_value: Any,
        state: str,
        traceback: Any = None,
        name: str | None = None,
    ) -> None:
        # Not the base's constructor: it would look for a client.
        self.id = id
        self._parent = None
        self._ignored = False
        self._callback = None
        self._result_value = ret_value
        self._state = state
        self._traceback = traceback
        self._name = name

    def _run(self, op: Op[Any]) -> Any:
        """Drive an operation that needs nothing."""
        try:
            next(op)
        except StopIteration as stop:
            return stop.value
        raise RuntimeError("an EagerResult has no server to ask")

    def _iterate_op(self, op: Op[None]) -> Iterator[Any]:
        return (effect.value for effect in op)  # type: ignore[union-attr]  # emits only

    @property
    def _cache(self) -> Meta:  # type: ignore[override]  # it is always known
        return {
            "task_id": self.id,
            "result": self._result_value,
            "status": self._state,
            "traceback": self._traceback,
            "name": self._name,
        }

    def _find_parent(self) -> Op[Any]:
        yield from ()
        return None

    def _exists(self) -> Op[bool]:
        yield from ()
        return True

    def get(  # type: ignore[override]  # Celery's signature
        self,
        timeout: float | None = None,
        propagate: bool = True,
        disable_sync_subtasks: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Return the value or raise the exception; None for any other state, as Celery."""
        return self._run(
            self._get(
                timeout=timeout, propagate=propagate, disable_sync_subtasks=disable_sync_subtasks
            )
        )

    wait = get  # type: ignore[assignment]  # as get

    def _get(  # type: ignore[override]  # a subset
        self, propagate: bool = True, disable_sync_subtasks: bool = True, **kwargs: Any
    ) -> Op[Any]:
        yield from ()
        if disable_sync_subtasks:
            _blocking.assert_will_not_block()
        if self._state not in (states.SUCCESS, *states.PROPAGATE_STATES):
            return None
        return self._outcome(self._cache, propagate)

    def ready(self) -> bool:
        """Say True."""
        return True

    def forget(self) -> None:
        """Do nothing."""

    def revoke(self, *args: Any, **kwargs: Any) -> None:
        """Become REVOKED."""
        self._state = states.REVOKED
        self._result_value = TaskRevokedError("revoked")

    def __reduce_args__(self) -> tuple[Any, ...]:
        return self.id, self._result_value, self._state, self._traceback, self._name

    def __copy__(self) -> EagerResult:
        return EagerResult(*self.__reduce_args__())

    def __repr__(self) -> str:
        return f"<EagerResult: {self.id}>"

    @property
    def supports_native_join(self) -> bool:
        """False: there is nothing to wait for."""
        return False
