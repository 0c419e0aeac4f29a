"""Who listens to a result: told once, by a thread that is there while it is needed."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from vine import promise

from resultd.celery._listeners import Callbacks, Once

WAIT = 5.0


class TestOnce:
    def test_is_told_by_the_first_who_comes(self) -> None:
        """A value or an error; whoever comes while it runs tells it nothing."""
        heard: list[Any] = []
        once: Once

        def listener(*told: Any) -> None:
            heard.append(told)
            once(*told)
            once.throw1(KeyError("k"))

        once = Once(promise(listener))
        once(5)
        once(6)
        assert heard == [(5,)]

    @pytest.mark.parametrize("how", ["throw", "throw1"])
    def test_is_told_one_error(self, how: str) -> None:
        """And no value after it."""
        heard: list[Any] = []
        once = Once(promise(heard.append, on_error=heard.append))
        error = KeyError("k")
        for told in (error, KeyError("another")):
            getattr(once, how)(told)
        once(5)
        assert heard == [error]

    def test_is_told_nothing_once_it_is_cancelled_or_dropped(self) -> None:
        """Cancelling is passed on."""
        heard: list[Any] = []
        for leave in (Once.cancel, Once.drop):
            listener = promise(heard.append, on_error=heard.append)
            once = Once(listener)
            leave(once)
            once(5)
            once.throw(KeyError("k"))
            assert listener.cancelled is (leave is Once.cancel)
        assert heard == []


class TestCallbacks:
    def test_is_called_though_no_thread_was_to_be_had_before(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The next callback tries again to start one."""
        callbacks = Callbacks()
        heard: queue.Queue[Any] = queue.Queue()

        def none(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none)
            with pytest.raises(RuntimeError):
                callbacks.add(lambda: heard.put("first"))
        callbacks.add(lambda: heard.put("second"))
        assert [heard.get(timeout=WAIT), heard.get(timeout=WAIT)] == ["first", "second"]

    def test_is_called_though_the_thread_was_ended_before(self) -> None:
        """From outside, between two callbacks; the next callback begins another."""

        class Ended(queue.SimpleQueue[Any]):
            def get(self, block: bool = True, timeout: float | None = None) -> Any:
                raise SystemExit

        callbacks = Callbacks()
        heard: queue.Queue[Any] = queue.Queue()
        sound, callbacks._queue, callbacks._running = callbacks._queue, Ended(), True
        with pytest.raises(SystemExit):
            callbacks._run()
        callbacks._queue = sound
        callbacks.add(lambda: heard.put("next"))
        assert heard.get(timeout=WAIT) == "next"
