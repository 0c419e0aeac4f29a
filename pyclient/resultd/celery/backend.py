"""The class Celery makes for `result_backend = "resultd://..."`.

What the contract of a result backend is, is read in `celery.backends.base`; each method here
says only what is particular. One instance serves all threads of a process; nothing is opened
before the first call, and forks are survived by the client underneath.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import kombu.compression
from celery import signals, states
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.base import Backend
from celery.exceptions import ImproperlyConfigured
from celery.result import result_from_tuple
from celery.utils.serialization import ensure_serializable
from celery.utils.time import get_exponential_backoff_interval
from kombu.exceptions import EncodeError

from resultd import _ids, _records
from resultd._deadline import Deadline
from resultd._pending import read_limit
from resultd.celery import _environment, _options
from resultd.celery._ahead import ReadAhead
from resultd.celery._chords import Chords
from resultd.celery._questions import Questions
from resultd.celery._records import Codec, is_stored, text_id, ttl_fields
from resultd.celery._waits import Waits
from resultd.client import Client
from resultd.errors import ResultdError, TaskError, ValueTooLargeError
from resultd.v1 import group_service_pb2, result_service_pb2, state_pb2

logger = logging.getLogger("resultd.celery")

#: Where a saved GroupResult lies: a group without members that carries it as a payload.
SAVED = "celery-taskset-meta-"
GROUP_RESULT = "celery.group"
# Seconds before a report is tried again, where no server said how many.
TRY_AGAIN = 0.05
# Seconds for which a task that is to begin waits for STARTED to be stored.
STARTED_TIMEOUT = 2.0

_clients: dict[str, Client] = {}


class ResultdBackend(AsyncBackendMixin, Backend):
    """Keeps results in a resultd server and waits for them by push.

    Args:
        app: the Celery app.
        url: `resultd://host:7758/namespace`, also as grpc://; resultds:// and grpcs:// for TLS;
            `RESULTD_URL`, else 127.0.0.1:7758, if it names no host.
        expires: seconds to keep results, instead of `result_expires`; 0 for ever.

    Raises:
        ImproperlyConfigured: the URL or `result_backend_transport_options` are not what they
            should be, or the process runs eventlet.
    """

    supports_native_join = True
    supports_autoexpire = True
    supports_result_compression = True
    supports_failure_expires = True
    persistent = True

    def __init__(
        self,
        app: Any,
        serializer: str | None = None,
        max_cached_results: int | None = None,
        accept: Any = None,
        expires: Any = None,
        expires_type: Any = None,
        url: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            app,
            serializer=serializer,
            max_cached_results=max_cached_results,
            accept=accept,
            expires=expires,
            expires_type=expires_type or int,
            url=url,
            **kwargs,
        )
        _environment.prepare()
        conf = app.conf
        transport = conf.get("result_backend_transport_options") or {}
        self.options = _options.read(url, transport, app.main)
        self.thread_safe = True  # one instance for all threads of the app
        self.compression = getattr(self, "compression", None) or _compression(conf)
        self._failure_expires = conf.get("result_failure_expires")
        self._chord_expires = conf.get("result_chord_expires")
        self.codec = Codec(self)
        self._waits = Waits(self)
        self._ahead = ReadAhead(self)
        self._chords = Chords(self)
        self._questions: Questions | None = None
        signals.worker_ready.connect(self._on_worker_ready)  # held weakly, both
        signals.heartbeat_sent.connect(self._on_heartbeat)

    @property
    def client(self) -> Client:
        """The process's client of this address, for whatever Celery has no words for."""
        text = self.options.text
        found = _clients.get(text)
        return found if found is not None else _clients.setdefault(text, Client(text))

    def as_uri(self, include_password: bool = False) -> str:
        """Return the address; the token is masked unless `include_password`."""
        return self.options.text if include_password else self.options.shown

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {**(kwargs or {}), "url": self.url, "expires": self.expires}
        return super().__reduce__(args, kwargs)

    # How long things are kept

    def expires_of(self, state: str) -> float | None:
        """Seconds to keep a result in a state (`result_expires`, `result_failure_expires`)."""
        if self._failure_expires is not None and state == states.FAILURE:
            kept: float | None = self.prepare_expires(self._failure_expires, int)
            return kept
        expires: float | None = self.expires
        return expires

    @property
    def chord_expires(self) -> float | None:
        """Seconds to keep what a chord needs after its last change (`result_chord_expires`)."""
        wanted = self.expires if self._chord_expires is None else self._chord_expires
        kept: float | None = self.prepare_expires(wanted, int)
        return kept

    def cleanup(self) -> None:
        """Do nothing: the server deletes what has expired."""

    def process_cleanup(self) -> None:
        """Do nothing: this is called after every task."""

    # Storing

    def store_result(self, task_id: Any, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Store a result; tried again by `result_backend_always_retry`, it is the same report.

        Not STARTED: a task that is to begin waits for nobody. Where it cannot be stored that is
        logged: Celery would not run the task, and never say so.
        """
        with self.codec.one_end():
            if state != states.STARTED:
                return super().store_result(task_id, result, state, *args, **kwargs)
            encoded = self.encode_result(result, state)
            try:
                self._store_result(task_id, encoded, state, *args, **kwargs)
            except (ResultdError, EncodeError) as error:
                logger.warning("Task %s runs, but its STARTED is not stored: %s", task_id, error)
            return encoded

    def _store_result(
        self,
        task_id: Any,
        result: Any,
        state: str,
        traceback: Any = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        store = self.codec.report(text_id(task_id), result, state, traceback, request)
        final = state in self.READY_STATES
        claim = self._chords.join_in(store, request) if final else None
        if final:
            store.claim_scope = self.options.claim_scope
        answer = self.send(store)
        if claim is not None:
            self._chords.joined(store, answer, claim)
        if answer.claimable_group_ids:
            # Finished as soon as this returns.
            own = answer.complete_group_ids if claim is not None else ()
            self._chords.notice(id_ for id_ in answer.claimable_group_ids if id_ not in own)
        return result

    def send(
        self, store: result_service_pb2.StoreResultRequest
    ) -> result_service_pb2.StoreResultResponse:
        """Store a report; tries for `store_timeout` seconds to reach a server.

        Raises:
            kombu.exceptions.EncodeError: the server says that it is too large.
        """
        seconds = self.options.store_timeout
        if store.meta.state == state_pb2.STATE_STARTED:
            seconds = min(seconds, STARTED_TIMEOUT)
        client, deadline = self.client, Deadline(seconds)
        while True:
            try:
                op = client.operations.report(store, limit=deadline.left())
                answer: result_service_pb2.StoreResultResponse = client.run(op)
                return answer
            except ValueTooLargeError as error:
                raise EncodeError(str(error)) from error
            except ResultdError as error:
                left, pause = deadline.left() or 0.0, error.retry_delay or TRY_AGAIN
                if not error.retryable or self.always_retry or left <= pause:
                    raise
                time.sleep(pause)  # the server asks for it, or the call had no time for more
            finally:
                self._ahead.stored()

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Whether `result_backend_always_retry` may try a call again after this."""
        return isinstance(exc, ResultdError) and exc.retryable

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """Store a task's value, which counts as its chord's part in the same call."""
        with self._chords.returning():
            super().mark_as_done(
                task_id, result, request=request, store_result=store_result, state=state
            )

    def mark_as_failure(
        self,
        task_id: str,
        exc: Any,
        traceback: Any = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """Store why a task failed, which counts as its chord's part in the same call."""
        with self._chords.returning():
            super().mark_as_failure(
                task_id,
                exc,
                traceback=traceback,
                request=request,
                store_result=store_result,
                call_errbacks=call_errbacks,
                state=state,
            )

    def mark_as_revoked(
        self,
        task_id: str,
        reason: str = "",
        request: Any = None,
        store_result: bool = True,
        state: str = states.REVOKED,
    ) -> None:
        """Store that a task was revoked, which counts as its chord's part in the same call."""
        with self._chords.returning():
            super().mark_as_revoked(
                task_id, reason=reason, request=request, store_result=store_result, state=state
            )

    # Reading

    def _get_task_meta_for(self, task_id: Any) -> dict[str, Any]:
        text = text_id(task_id)
        known = self._waits.known.get(text)
        if known is not None:
            return known
        if not _ids.fits(text):  # of somebody's parent, which is looked at by the way
            return {"status": states.PENDING, "result": None}
        meta = self._ahead.meta(text)
        if meta is None:
            (_, meta), *_ = self._waits.read_once([text])
        return meta

    def task_result_exists(self, task_id: Any) -> bool:
        """Whether there is a record of this task, in whatever state."""
        client = self.client
        (record,) = client.run(client.operations.read([text_id(task_id)]))
        self._ahead.heard([record])
        return is_stored(record)

    def get_many(
        self,
        task_ids: Iterable[Any],
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        max_iterations: int | None = None,
        READY_STATES: frozenset[str] = states.READY_STATES,  # noqa: N803 (Celery's name)
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (id, meta) of ids as they become ready; with `max_iterations` those that are.

        Raises:
            TimeoutError: not all were ready in time.
        """
        ids = dict.fromkeys(map(text_id, task_ids))
        for task_id in list(ids):
            cached = self._cache.get(task_id)
            if cached and cached["status"] in READY_STATES:
                del ids[task_id]
                yield task_id, cached
        if not ids:
            return
        found = (
            self._waits.read_once(ids, read_limit(Deadline(timeout)))
            if max_iterations
            else self._waits.get_many(ids, timeout, interval, on_interval, READY_STATES)
        )
        for task_id, meta in found:
            if meta["status"] not in READY_STATES:
                continue
            del ids[task_id]
            self._cache[task_id] = meta
            if on_message is not None:
                on_message(meta)
            yield task_id, meta
            if not ids:
                return

    def encode_result(self, result: Any, state: str) -> Any:
        """Return what is stored; a task may also end with SystemExit."""
        if state not in self.EXCEPTION_STATES or not isinstance(result, BaseException):
            return super().encode_result(result, state)
        prepared = self.prepare_exception(result)
        if isinstance(result, TaskError) and isinstance(prepared, dict):
            # Another task's that was passed on: as what it is there.
            args = ensure_serializable(result.args or (result.message,), self.encode)
            nowhere = result.module in ("", "builtins")
            module = "celery.exceptions" if nowhere else result.module
            prepared.update(exc_type=result.type, exc_module=module, exc_message=args)
        return prepared

    def forget(self, task_id: Any) -> None:
        """Forget a result, and that anybody listens to it: not all Celerys say so."""
        super().forget(task_id)
        for result in self._waits.listened(text_id(task_id)):
            self.remove_pending_result(result)

    def _forget(self, task_id: Any) -> None:
        client = self.client
        try:
            client.run(client.operations.forget([text_id(task_id)]))
        finally:
            self._ahead.forgot()

    # Waiting

    @property
    def is_async(self) -> bool:
        """Whether results come by themselves: they do."""
        return True

    def wait_for_pending(
        self,
        result: Any,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        callback: Callable[[str, Any], object] | None = None,
        propagate: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Wait for a result and return its value.

        Raises:
            TimeoutError: it was not ready in time, to the millisecond.
            Exception: the task's own, with `propagate`.
        """
        self._ensure_not_eager()
        task_id, deadline = text_id(result.id), Deadline(timeout)
        known = self._cache.get(task_id)
        if not known and on_message is None:
            known = self._ahead.meta(task_id, deadline)
        # One that failed may have done so of a parent: that is looked at while waiting.
        clear = not result.parent or (known or {}).get("status") not in states.PROPAGATE_STATES
        if known and known["status"] in self.READY_STATES and clear:
            result._maybe_set_cache(known)
        else:
            self._waits.wait_for_pending(result, deadline, interval, on_interval, on_message)
        return result.maybe_throw(callback=callback, propagate=propagate)

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """Wait for a task and return its meta.

        Raises:
            TimeoutError: it was not ready in time.
        """
        result = self.app.AsyncResult(task_id)
        self._waits.wait_for_pending(result, Deadline(timeout), interval, on_interval, None)
        meta: dict[str, Any] = result._cache
        return meta

    def iter_native(
        self,
        result: Any,
        no_ack: bool = True,
        timeout: float | None = None,
        interval: float = 0.5,
        on_message: Callable[[dict[str, Any]], object] | None = None,
        on_interval: Callable[[], object] | None = None,
        **kwargs: Any,
    ) -> Iterator[tuple[str, Any]]:
        """Yield (id, meta) of a set's results as they become ready, (id, children) of sets.

        Raises:
            TimeoutError: not all were ready in time.
        """
        self._ensure_not_eager()
        return self._waits.iter_native(result, timeout, interval, on_interval, on_message)

    def add_pending_result(self, result: Any, weak: bool = False, **kwargs: Any) -> Any:
        """Get ready for a `then()`; without one nothing is asked of the server."""
        self._waits.expect(result, weak)
        return result

    def add_pending_results(self, results: Iterable[Any], weak: bool = False) -> list[Any]:
        """Get ready for a `then()` of each."""
        return [self.add_pending_result(result, weak=weak) for result in results]

    def remove_pending_result(self, result: Any) -> Any:
        """Watch a result no longer. Takes no lock and asks nothing: finalisers call this."""
        self._waits.dismiss(result)
        self._ahead.drop(result.id)
        return result

    def on_task_call(self, producer: Any, task_id: Any) -> dict[str, Any]:
        """Remember what was published, to read for it in bulk. Nothing is asked of the server."""
        self._ahead.note(task_id)
        return {}

    # Groups

    def _save_group(self, group_id: str, result: Any) -> Any:
        payload = self.codec.encode({"result": result.as_tuple()}, squeeze=len(result) > 1_000)
        request = group_service_pb2.CreateGroupRequest(
            group_id=SAVED + text_id(group_id), seal=True, **ttl_fields(self.expires)
        )
        request.extra[GROUP_RESULT].CopyFrom(payload)
        try:
            self._run("CreateGroup", request)
        except ValueTooLargeError as error:
            raise EncodeError(str(error)) from error
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        client = self.client
        group = client.run(client.operations.group(SAVED + text_id(group_id)))
        if GROUP_RESULT not in group.extra:
            return None
        meta: dict[str, Any] = self.codec.decode(group.extra[GROUP_RESULT])
        restored = meta["result"] = result_from_tuple(meta["result"], self.app)
        for member in restored.results or ():
            self._ahead.note(text_id(member.id))
        return meta

    def _delete_group(self, group_id: str) -> None:
        client = self.client
        client.run(client.operations.delete_group(SAVED + text_id(group_id)))

    def _run(self, method: str, request: Any) -> Any:
        return self.client.run(self.client.operations.call(method, request))

    def _retrying(self, function: Callable[..., object], *args: Any) -> None:
        """Call with `result_backend_always_retry`; Celery before 5.7 has no such helper."""
        retries = 0
        while True:
            try:
                function(*args)
                return
            except ResultdError as error:
                again = self.always_retry and error.retryable and retries < self.max_retries
                if not again:
                    raise
                logger.warning("%s failed and is tried again: %s", function.__name__, error)
            retries += 1
            pause = get_exponential_backoff_interval(
                self.base_sleep_between_retries_ms, retries, self.max_sleep_between_retries_ms, True
            )
            time.sleep(pause / 1000)

    # Chords

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Declare a chord before its header is published."""
        self.ensure_chords_allowed()
        group_id, results = header_result_args[:2]
        self._retrying(self._chords.declare, group_id, results, body)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Say how many parts a chord has; its last one is about to be published."""
        self._retrying(self._chords.set_size, group_id, chord_size)

    def add_to_chord(self, chord_id: str, result: Any) -> None:
        """Expect one more part."""
        self._retrying(self._chords.add, chord_id, result.id)

    def part_report(
        self, task_id: str, result: Any, state: str, request: Any
    ) -> result_service_pb2.StoreResultRequest:
        """Write a chord's part that was not stored as its task's result in the same call."""
        if state in states.PROPAGATE_STATES:
            # A body that fails, and the rest of a chain, are stored before they return as
            # parts of other chords: an ignored result would take the stored one's place.
            (stored,) = self.client.run(self.client.operations.read([task_id]))
            if _records.state_name(stored.state, "") == state:
                traceback = stored.failure.traceback or None
                encoded = self.encode_result(result, state)
                return self.codec.report(task_id, encoded, state, traceback, request)
        return self.codec.unstored_part(task_id, result, state, request)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Count a part; whoever returns the last one publishes the body."""
        with self._chords.returning(), self.codec.one_end():
            self._retrying(self._chords.part_returned, request, state, result)

    def _on_worker_ready(self, sender: Any = None, **kwargs: Any) -> None:
        """In a worker's main process: look for unfinished chords twice per lease."""
        timer = getattr(sender, "timer", None)
        if timer is None or getattr(sender, "app", None) is not self.app:
            return
        self._questions = Questions(timer, self._chords.ask, self.options.chord_lease / 2)

    def _on_heartbeat(self, **kwargs: Any) -> None:
        if self._questions is not None:
            self._questions.revive()


def _compression(conf: Any) -> str | None:
    """Return the method to compress with; Celery before 5.7 leaves it to the backend."""
    method: str | None = conf.get("result_compression")
    if not method:
        return None
    try:
        kombu.compression.get_encoder(method)
    except KeyError as error:
        known = ", ".join(sorted(kombu.compression.encoders()))
        raise ImproperlyConfigured(
            f"unknown compression method {method!r} in result_compression (known: {known})"
        ) from error
    return method
