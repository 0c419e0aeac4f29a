"""One lazy channel per server address in a process, for threads; it survives forks.

Nothing is opened before the first call. Clients of the same address share the endpoint, with
its channel and its one `Watch` stream; the last one to close it closes them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from resultd import _files, _fork, _gevent, _status, _stranded, _stubs, _unary
from resultd._credential import Credential, Metadata
from resultd._deputies import Errand, deputies, needed
from resultd._effects import Call, Effect, Mailbox, Op, Open, Receive, Reconnect, Report, Sleep, run
from resultd._reporter import ThreadReporter
from resultd._stream import QueueMailbox, Reading, ThreadStream
from resultd._url import Url
from resultd._watcher import Owner, Watcher
from resultd.errors import ClientClosedError, ResultdError, UnavailableError, make

T = TypeVar("T")

RECEIVE_BYTES_MAX = 16 * 1024 * 1024
CERTIFICATES_BYTES_MAX = 16 * 1024 * 1024  # of a file; all that a system trusts has some 0.3 MB
# Seconds after its timeout at which a call is given up that gRPC should have ended by then.
LATE_MAX = 1.0
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    # How long a server that came back stays unseen: at most so long, and half of it as a rule.
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Retries are written once, in _operations: two layers would multiply.
    ("grpc.enable_retries", 0),
    # Else a new channel would share the dead connection of the one it replaces.
    ("grpc.use_local_subchannel_pool", 1),
)


def credentials(url: Url) -> grpc.ChannelCredentials:
    """Read the certificates an address names.

    Raises:
        OSError: a file cannot be read.
    """
    return grpc.ssl_channel_credentials(*(_bytes_of(path) for path in (url.ca, url.key, url.cert)))


def options(url: Url) -> list[tuple[str, int | str]]:
    """Return the channel options for an address."""
    chosen: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
    if url.here:  # a proxy that the environment names would look for it on its own host
        chosen.append(("grpc.enable_http_proxy", 0))
    if url.server_name:
        chosen.append(("grpc.ssl_target_name_override", url.server_name))
    return chosen


def connect(url: Url) -> grpc.Channel:
    """Return a new channel, to be closed.

    Raises:
        OSError: a certificate cannot be read.
    """
    if url.secure:
        return grpc.secure_channel(url.target, credentials(url), options=options(url))
    return grpc.insecure_channel(url.target, options=options(url))


def _bytes_of(path: str) -> bytes | None:
    return _files.read(path, CERTIFICATES_BYTES_MAX) if path else None


class Endpoint:
    """A server, as the threads of this process see it."""

    def __init__(self, url: Url) -> None:
        self.url = url
        self.users = 0
        self.watcher = Watcher(self, url.heartbeat)
        self._generation = 0
        self._new_state()
        _fork.know(self)

    def _new_state(self) -> None:
        self._channel: grpc.Channel | None = None
        self._credential = Credential(self.url)
        self._methods: dict[str, Any] = {}
        self._grpc_lock: threading.Condition | None = None
        self._calling = False
        self._streams: set[Reading] = set()
        self._background: threading.Thread | None = None
        self._in_flight: set[object] = set()
        self._reporter = ThreadReporter(self._call)

    # What operations ask for

    def handle(self, effect: Effect) -> Any:
        """Do what an operation asks for."""
        if isinstance(effect, Call):
            return self._call(effect)
        if isinstance(effect, Report):
            return self._reporter.store(effect)
        if isinstance(effect, Receive):
            assert isinstance(effect.mailbox, QueueMailbox)
            return effect.mailbox.receive(effect.timeout)
        if isinstance(effect, Open):
            return _deputed(lambda: self._open(effect))
        if isinstance(effect, Reconnect):
            return _deputed(lambda: self._reconnect(effect.generation))
        assert isinstance(effect, Sleep)
        return time.sleep(effect.seconds)

    def new_mailbox(self) -> Mailbox:
        """Return a mailbox for threads."""
        return QueueMailbox()

    def spawn(self, op: Op[None], failed: Callable[[BaseException], None]) -> None:
        """Drive an operation in a daemon thread; `failed` is told if there can be none."""
        if sys.is_finalizing():
            failed(_too_late())
            return
        deputies.leave(lambda: self._spawn(op, failed))

    def _spawn(self, op: Op[None], failed: Callable[[BaseException], None]) -> None:
        try:
            with _fork.gate:
                self._method("Watch")  # a fork has to find us registered, not a thread on its way
                self._background = threading.Thread(
                    target=run, args=(op, self.handle), name="resultd-watch", daemon=True
                )
                self._background.start()
        except BaseException as error:  # noqa: BLE001 (told to who waits)
            failed(error)

    def forbid_waiting(self) -> None:
        """Refuse to wait in the thread that everybody who waits depends on."""
        if threading.current_thread() is self._background:
            raise RuntimeError(
                "waiting inside a then() callback would wait for ever: the callback runs in the "
                "thread that brings results. Hand the work to another thread"
            )

    def _call(self, effect: Call) -> Any:
        if not needed() or _fork.forks_here():
            return self._make_call(effect, None)
        lock = self._grpc_lock
        # One that waits for a connection is to end at once. And a handler's own call must not
        # take the lock from the one that it has interrupted.
        if effect.patient or lock is None or self._calling:
            return deputies.do(lambda errand: self._make_call(effect, errand))
        try:
            self._calling = True
            return self._make_call(effect, None)
        except BaseException:
            _unary.give_back(lock)
            raise
        finally:
            self._calling = False

    def _make_call(self, effect: Call, errand: Errand[Any] | None) -> Any:
        generation = self._generation
        token = object()
        try:
            with _fork.gate:
                method = self._method(effect.method)
                self._in_flight.add(token)  # before a fork can look
            metadata = self._credential.metadata
            if effect.patient:
                return self._await_call(effect, metadata, errand)
            return method(effect.request, timeout=effect.timeout, metadata=metadata)
        except grpc.FutureCancelledError:  # the channel was closed
            failed = _closed_under_us()
        except grpc.FutureTimeoutError:
            failed = make("DEADLINE_EXCEEDED", "gRPC did not end the call in time")
        except grpc.RpcError as error:
            failed = self._failed(error, effect, metadata, generation)
        except ValueError:  # what grpc raises on a channel that was closed meanwhile
            if generation == self._generation:
                raise
            failed = _closed_under_us()
        finally:
            self._in_flight.discard(token)
        # Not as the follow-up of gRPC's: a future is its own error, and dropping that takes locks.
        try:
            raise failed
        finally:
            del failed  # it holds this frame

    def _failed(
        self, error: grpc.RpcError, effect: Call, metadata: Metadata, generation: int
    ) -> ResultdError:
        if generation != self._generation:
            return _closed_under_us()
        found = self._explain(error, metadata)
        silent = found.code == "DEADLINE_EXCEEDED" and self.url.is_silence(effect.timeout)
        if silent and not sys.is_finalizing():  # another connection could not be made then
            _deputed(lambda: self._reconnect(generation))  # as silent as a stream can be
        return found

    def _explain(self, error: grpc.RpcError, metadata: Metadata) -> ResultdError:
        found = _status.from_rpc_error(error, self.url.scheme)
        if found.code == "UNAUTHENTICATED":
            found.renewed = self._credential.renew(metadata)
        return found

    def _await_call(self, effect: Call, metadata: Metadata, errand: Errand[Any] | None) -> Any:
        how = {"timeout": effect.timeout, "metadata": metadata, "wait_for_ready": True}
        with _fork.gate:
            method = self._method(effect.method)
            call = self._begin(method, effect, how) if errand is not None else None
        if errand is None or call is None:
            return method(effect.request, **how)
        # This one may take its whole time, and can be cancelled.
        errand.stop_with(call.cancel)
        try:
            return method.read(call.result(effect.timeout + LATE_MAX))
        finally:
            call.cancel()  # if it goes on

    def _begin(self, method: Any, effect: Call, how: dict[str, Any]) -> Any:
        """Begin a call as a future; None where there can be no thread, which futures need."""
        if not _stranded.save_all():
            return None
        try:
            return method.future(effect.request, **how)
        except _stranded.NO_THREAD as error:
            self._give_up(error)
            raise _stranded.error(error) from error

    def _open(self, effect: Open) -> ThreadStream:
        if sys.is_finalizing():
            raise _too_late()
        with _fork.gate:
            if not _stranded.save_all():
                raise _stranded.error()
            method = self._method(effect.method)
            metadata = self._credential.metadata
            try:
                return ThreadStream(
                    lambda request: method(
                        request, metadata=metadata, wait_for_ready=effect.patient
                    ),
                    effect.request,
                    self._streams,
                    self._generation,
                    lambda error: self._explain(error, metadata),
                )
            except _stranded.NO_THREAD as error:
                self._give_up(error)
                raise _stranded.error(error) from error

    def _reconnect(self, generation: int) -> None:
        with _fork.gate:
            if generation == self._generation:
                self._close_channel()

    def _method(self, name: str) -> Any:
        with _fork.gate:
            if self._channel is None:
                self._channel = self._connect()
                self._methods = _stubs.methods(_unary.OfBytes(self._channel))
                self._grpc_lock = _unary.lock_of(self._channel)
                _fork.guard()
            return self._methods[name]

    def _connect(self) -> grpc.Channel:
        _gevent.prepare()
        self._credential.load()
        try:
            return connect(self.url)
        except ImportError:  # gRPC imports as it connects
            if sys.is_finalizing():
                raise _too_late() from None
            raise

    # The end, and forks

    def close(self, error: ResultdError) -> None:
        """Close stream and channel; whoever waits is told `error`."""
        _deputed(lambda: self._close(error))

    def _close(self, error: ResultdError) -> None:
        self.watcher.fail_all(error)
        with _fork.gate:
            self._cancel_streams()
            self._close_channel()
            _stranded.save_all()

    def end(self, owner: Owner) -> None:
        """End the waits and streams of one client among those that use this."""
        _deputed(lambda: self._end(owner))

    def _end(self, owner: Owner) -> None:
        self.watcher.fail_of(owner, ClientClosedError())
        for stream in list(self._streams):
            if stream.owner is owner:
                stream.cancel()

    def _cancel_streams(self) -> list[Reading]:
        streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        return streams

    def close_streams(self, deadline: float) -> None:
        """Cancel every stream: the interpreter is about to end."""
        self.watcher.drop_all()  # else it would open its own again
        for stream in self._cancel_streams():
            stream.join(deadline)

    def _close_channel(self) -> None:
        channel = self._take_channel()
        if channel is not None:
            # Without the gate, which who forks holds.
            deputies.do(lambda _: channel.close()) if needed() else channel.close()

    def _give_up(self, error: BaseException) -> None:
        """Leave a channel on which no call can be begun: a thread of gRPC's was lacking."""
        channel = self._take_channel()
        if channel is not None:
            _stranded.give_up(channel, error)

    def _take_channel(self) -> grpc.Channel | None:
        channel, self._channel = self._channel, None
        self._methods = {}
        self._grpc_lock = None
        self._generation += 1
        return channel

    def before_fork(self, deadline: float) -> None:
        """Leave gRPC, with every thread; the gate stays shut until after the fork."""
        self.watcher.suspend()
        for stream in self._cancel_streams():
            stream.join(deadline)
        self._close_channel()
        if _stranded.left():
            deputies.do(lambda _: _stranded.save_all()) if needed() else _stranded.save_all()
        self._background_join(deadline)
        while self._in_flight and time.monotonic() < deadline:
            time.sleep(0.0005)  # calls of other threads, on their way out with CANCELLED

    def _background_join(self, deadline: float) -> None:
        # Without the gate the thread could not come out of an Open. It is let through: what
        # it finds is a watcher that is suspended.
        thread = self._background
        if thread is None or thread is threading.current_thread():
            return
        thread.join(min(0.05, max(0.0, deadline - time.monotonic())))

    def after_fork_in_parent(self) -> None:
        """Go on with what was waited for."""
        self.watcher.resume()

    def after_fork_in_child(self) -> None:
        """Begin anew: locks may be held by threads that do not exist here."""
        self._generation += 1
        self._new_state()
        self.watcher.forget_all()


def _deputed(work: Callable[[], T]) -> T:
    """Do what enters gRPC, by a deputy where that is the main thread.

    Not where this thread forks: it holds the gate that the deputy would wait for.
    """
    if needed() and not _fork.forks_here():
        return deputies.do(lambda _: work())
    return work()


def _closed_under_us() -> ResultdError:
    error = UnavailableError("the connection was given up while the call was under way")
    error.code = "UNAVAILABLE"
    return error


def _too_late() -> ResultdError:
    """What a finaliser gets that runs while the interpreter ends, when no thread runs any more."""
    error = UnavailableError("the interpreter is ending: no wait and no connection begins any more")
    error.code = "FAILED_PRECONDITION"  # and so not tried again
    return error


_endpoints: dict[Url, Endpoint] = {}
_sharing = threading.Lock()


def _renew_lock() -> None:
    global _sharing
    _sharing = threading.Lock()


# Whether or not a channel was ever opened, and gRPC's own hooks are in place: another thread
# may have held the lock at the fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def acquire(url: Url) -> Endpoint:
    """Return the process's endpoint for an address; give it back with `release`."""
    with _sharing:
        endpoint = _endpoints.get(url)
        if endpoint is None:
            endpoint = _endpoints[url] = Endpoint(url)
        endpoint.users += 1
        return endpoint


def release(endpoint: Endpoint, owner: Owner | None = None) -> None:
    """Give an endpoint back, and end what waits for `owner`; the last one closes it."""
    if owner is not None:
        endpoint.end(owner)
    with _sharing:
        endpoint.users -= 1
        if endpoint.users > 0:
            return
        if _endpoints.get(endpoint.url) is endpoint:
            del _endpoints[endpoint.url]
    endpoint.close(ClientClosedError())
