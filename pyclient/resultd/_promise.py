"""What `then()` returns: something that happens once, and whom it is told to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("resultd")

Listener = tuple[Callable[[Any], object], "Callable[[BaseException], object] | None"]


class Promise:
    """Fulfilled once, with a value, or thrown an exception; listeners are told once each.

    A listener that is added afterwards is told at once. One that raises does not keep the
    others from being told: its exception goes to its `on_error`, or to the log.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self.ready = False
        self.value: Any = None
        self.reason: BaseException | None = None

    def __call__(self, value: Any) -> None:
        """Fulfil the promise; a second time does nothing."""
        self._settle(value, None)

    def throw(self, reason: BaseException) -> None:
        """Tell every listener's `on_error`; those without one get it in the log."""
        self._settle(None, reason)

    def then(
        self,
        callback: Callable[[Any], object],
        on_error: Callable[[BaseException], object] | None = None,
    ) -> Promise:
        """Call `callback(value)` when the promise is fulfilled."""
        with self._lock:
            if not self.ready:
                self._listeners.append((callback, on_error))
                return self
        self._tell((callback, on_error))
        return self

    def _settle(self, value: Any, reason: BaseException | None) -> None:
        with self._lock:
            if self.ready:
                return
            self.ready, self.value, self.reason = True, value, reason
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            self._tell(listener)

    def _tell(self, listener: Listener) -> None:
        callback, on_error = listener
        try:
            if self.reason is not None:
                raise self.reason
            callback(self.value)
        except Exception as error:  # a listener must not take the others down
            if on_error is None:
                logger.exception("a then() callback failed")
                return
            try:
                on_error(error)
            except Exception:  # as above
                logger.exception("the on_error of a then() callback failed")
