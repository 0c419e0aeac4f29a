"""What `then()` returns: something that happens once, and whom it is told to."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("resultd")

# Of all promises: held for a few steps, and renewed by one in a forked child, where another thread
# may have held it. One that may be taken again, by a finaliser in the midst of these steps.
_lock = threading.RLock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)

Listener = tuple[Callable[[Any], object], "Callable[[BaseException], object] | None"]


class Promise:
    """Fulfilled once, with a value, or thrown an exception; listeners are told once each.

    A listener that is added afterwards is told at once. One that raises does not keep the
    others from being told: its exception goes to its `on_error`, or to the log. What is no
    `Exception` (SystemExit, Ctrl-C) is raised when all have been told.

    `renew()` takes a fulfilment back: who listens from then on is told of the next one.
    """

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self.ready = False
        self.value: Any = None
        self.reason: BaseException | None = None

    @property
    def has_listeners(self) -> bool:
        """Whether a listener is yet to be told."""
        return bool(self._listeners)

    def renew(self) -> None:
        """Be as if never fulfilled, for who listens from now on; what was thrown stays."""
        with _lock:
            if self.reason is None:
                self.ready, self.value = False, None

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
        with _lock:
            if not self.ready:
                self._listeners.append((callback, on_error))
                return self
            value, reason = self.value, self.reason
        _tell((callback, on_error), value, reason)
        return self

    def _settle(self, value: Any, reason: BaseException | None) -> None:
        with _lock:
            if self.ready:
                return
            self.ready, self.value, self.reason = True, value, reason
            listeners, self._listeners = self._listeners, []
        ends: BaseException | None = None
        for listener in listeners:
            try:
                _tell(listener, value, reason)
            except BaseException as error:  # noqa: BLE001 (raised below)
                ends = ends or error
        if ends is not None:
            raise ends


def _tell(listener: Listener, value: Any, error: BaseException | None) -> None:
    callback, on_error = listener
    if error is None:
        try:
            callback(value)
        except Exception as raised:  # noqa: BLE001 (it goes to on_error, or to the log)
            error = raised
        else:
            return
    if on_error is None:
        logger.error("a then() callback failed", exc_info=error)
        return
    try:
        on_error(error)
    except Exception:  # a listener must not take the others down
        logger.exception("the on_error of a then() callback failed")
