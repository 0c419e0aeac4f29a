"""Between Celery's task metas and the records of the protocol.

In the store a Celery result is an ordinary record: its value a payload of the content type
Celery serialised it with (JSON by default), its exception a `Failure`, its task's name, worker
and queue in their fields. What Celery's meta has and the record lacks goes into `extra`, under
keys that begin with "celery.".
"""

from __future__ import annotations

import builtins
import contextlib
import datetime
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import states
from kombu.compression import compress, decompress
from kombu.exceptions import ContentDisallowed, DecodeError, EncodeError
from kombu.serialization import loads, registry

from resultd import _ids, _records, _tracing, serialization
from resultd.errors import SerializationError
from resultd.v1 import result_service_pb2, state_pb2, task_pb2, value_pb2

if TYPE_CHECKING:
    from resultd.celery.backend import ResultdBackend

logger = logging.getLogger("resultd.celery")

# The server's limit for one record (GetServerInfo: record_bytes_max).
RECORD_BYTES_MAX = 3 * 1024 * 1024
TRACEBACK_BYTES_MAX = 64 * 1024
MESSAGE_BYTES_MAX = 64 * 1024
TEXT_BYTES_MAX = 1024
CHILDREN_MAX = 10_000
TTL_SECONDS_MAX = 10 * 366 * 86_400  # the server's: what is to be kept longer is kept for ever

#: The group a task was called in, where that is not a chord's.
GROUP_LABEL = "celery.group"
#: An exception as Celery encoded it, where a Failure cannot hold it: a pickle, or no exception.
RESULT = "celery.result"
#: Children that are more than an id, with a parent or members, or more than the field takes;
#: or `null`: no list. Without this key the children are the field's, none of them is `[]`.
CHILDREN = "celery.children"
#: A traceback that was stored with something else than an exception.
TRACEBACK = "celery.traceback"
#: Stamps and their headers.
STAMPS = "celery.stamps"
#: This record is a chord's part of a task that ignores its result; names the part's state.
PART = "celery.part"

_DEFLATE = "deflate"  # kombu's "application/x-gzip" is zlib's format, HTTP's "deflate"
_KOMBU_DEFLATE = "application/x-gzip"
# The class and module of what failed and says no more.
_UNKNOWN = ("TaskError", "celery.exceptions")
_NO_CHILDREN = b"null"  # None, and not []: what Celery has of a task without a request
_EXCEPTION_KEYS = frozenset({"exc_type", "exc_message", "exc_module"})


class Codec:
    """Writes and reads records the way one backend is configured."""

    def __init__(self, backend: ResultdBackend) -> None:
        self._backend = backend
        self._end = _End()

    # Payloads

    def encode(self, value: Any, *, squeeze: bool = False) -> value_pb2.Payload:
        """Write a value with the configured serializer, compressed if so configured.

        `squeeze`: compress anyway.

        Raises:
            kombu.exceptions.EncodeError: it cannot be written so.
        """
        content_type, _, data = self._backend._encode(value)
        payload = value_pb2.Payload(content_type=content_type, data=_bytes(data))
        method = self._backend.compression or ("zlib" if squeeze else None)
        if method:
            payload.data, kind = compress(payload.data, method)
            payload.content_encoding = _DEFLATE if kind == _KOMBU_DEFLATE else kind
        return payload

    def decode(self, payload: value_pb2.Payload) -> Any:
        """Read a value, if its content type is accepted.

        Raises:
            kombu.exceptions.ContentDisallowed: it is not (`result_accept_content`).
            kombu.exceptions.DecodeError: the bytes are not what they claim to be.
        """
        content_type, accept = payload.content_type, self._backend.accept
        if content_type == serialization.JSON and payload.data and not payload.content_encoding:
            return loads(payload.data, content_type, "utf-8", accept)
        if content_type not in registry.type_to_name:  # as an app registered it, it means that
            content_type = content_type.partition(";")[0].strip().lower() or serialization.JSON
        data = _inflated(payload)
        if content_type == serialization.BINARY:
            return data
        if content_type == serialization.JSON and not data:
            return None  # somebody's who has no value
        charset = "binary" if "python" in content_type or "msgpack" in content_type else "utf-8"
        return loads(data, content_type, charset, accept)

    # Reports

    @contextlib.contextmanager
    def one_end(self) -> Iterator[None]:
        """Let reports written inside name one moment as their task's end.

        Celery's own retries write a report anew. By its end the server knows a late repeat of what
        was forgotten or has expired from another run of the task that came to the same.
        """
        before, self._end.time_ns = self._end.time_ns, time.time_ns()
        try:
            yield
        finally:
            self._end.time_ns = before

    def report(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: Any,
        request: Any,
    ) -> result_service_pb2.StoreResultRequest:
        """Write what Celery says about a task.

        Raises:
            kombu.exceptions.EncodeError: the result cannot be serialised, or is too large.
        """
        # Not asked for as one that is ready: only the time would be added, and the app's clock,
        # in its own zone, costs as much as the rest.
        meta = self._backend._get_result_meta(
            result=result, state=states.PENDING, traceback=traceback, request=request
        )
        store = result_service_pb2.StoreResultRequest(**ttl_fields(self._backend.expires_of(state)))
        message = store.meta  # written in place: a message that is handed in is copied
        message.task_id = task_id
        _tracing.stamp(message)
        message.state, message.custom_state = _records.state_fields(state)
        self._write_outcome(message, result, state, traceback)
        self._write_request(message, meta, request)
        final = state in states.READY_STATES
        self._write_children(message, meta["children"], final)
        if final:
            self._write_end(message)
        self._fit(message, state)
        return store

    def unstored_part(
        self, task_id: str, result: Any, state: str, request: Any
    ) -> result_service_pb2.StoreResultRequest:
        """Write a chord's part of a task whose result is not to be stored."""
        message = task_pb2.TaskMeta(task_id=task_id, state=state_pb2.STATE_IGNORED)
        encoded = self._backend.encode_result(result, state)
        if state in states.EXCEPTION_STATES:
            message.extra[RESULT].CopyFrom(self.encode(encoded))
        else:
            message.value.CopyFrom(self.encode(encoded))
        message.extra[PART].CopyFrom(_json(state))
        message.name = _text(getattr(request, "task", None))
        message.worker = _text(getattr(request, "hostname", None))
        self._write_end(message)
        self._fit(message, state)
        return result_service_pb2.StoreResultRequest(
            meta=message, **ttl_fields(self._backend.chord_expires)
        )

    def _write_end(self, message: task_pb2.TaskMeta) -> None:
        message.done_time.FromNanoseconds(self._end.time_ns or time.time_ns())

    def _write_outcome(
        self, message: task_pb2.TaskMeta, result: Any, state: str, traceback: Any
    ) -> None:
        if state in states.EXCEPTION_STATES:
            self._write_failure(message, result, traceback)
            return
        if result is not None or state == states.SUCCESS:
            message.value.CopyFrom(self.encode(result))
        progress = _records._progress_in(result)
        if progress is not None:
            message.progress.current, message.progress.total = progress.current, progress.total
        if traceback is not None:
            message.extra[TRACEBACK].CopyFrom(_json([state, _clean(traceback)]))

    def _write_failure(self, message: task_pb2.TaskMeta, result: Any, traceback: Any) -> None:
        failure = message.failure
        failure.language = "python"
        failure.traceback = "" if traceback is None else _clean(traceback)
        if _is_plain(result):
            args = list(result["exc_message"])
            failure.type, failure.module = result["exc_type"], result["exc_module"]
            failure.message = _cut(_said(args))
            failure.args.CopyFrom(self.encode(args))
            return
        # A pickled exception, or whatever else somebody stored under such a state. Without
        # `args` a reader knows that this is the whole of it.
        message.extra[RESULT].CopyFrom(self.encode(result))
        wrapped = getattr(result, "exc_cls_name", None)  # celery's UnpickleableExceptionWrapper
        failure.type = _text(wrapped or type(result).__qualname__)
        failure.module = _text(getattr(result, "exc_module", None) or type(result).__module__)
        failure.message = _cut(_str(result))

    def _write_request(
        self, message: task_pb2.TaskMeta, meta: Mapping[str, Any], request: Any
    ) -> None:
        message.parent_id = _id(meta.get("parent_id"))
        if meta.get("group_id"):
            message.labels[GROUP_LABEL] = str(meta["group_id"])
        if request is None:
            return
        delivery = getattr(request, "delivery_info", None) or {}
        message.name = _text(getattr(request, "task", None))
        message.worker = _text(getattr(request, "hostname", None))
        message.queue = _text(delivery.get("routing_key"))
        message.retries = getattr(request, "retries", None) or 0
        message.root_id = _id(getattr(request, "root_id", None))
        for key in ("args", "kwargs"):
            if meta.get(key) is not None:
                getattr(message, key).CopyFrom(self.encode(meta[key]))
        headers = meta.get("stamped_headers")
        if headers:
            stamps = {key: meta[key] for key in headers if key in meta}
            message.extra[STAMPS].CopyFrom(self.encode({"stamped_headers": headers, **stamps}))

    def _write_children(self, message: task_pb2.TaskMeta, children: Any, final: bool) -> None:
        if children is None:
            message.extra[CHILDREN].content_type = serialization.JSON
            message.extra[CHILDREN].data = _NO_CHILDREN
            return
        # A child's id is as whoever called it wrote it. Bookkeeping never costs a result.
        children = [_with_text_ids(child) for child in children]
        if not final:
            # The field is never cleared, and what a run called that is tried again (itself,
            # for one) is no child of the task that succeeds in the end.
            if children:
                message.extra[CHILDREN].CopyFrom(_json(children))
            return
        fit = [child for child in children[:CHILDREN_MAX] if _ids.fits(child[0][0])]
        message.children.extend(map(_records.child, fit))
        if len(children) > len(fit) or any(
            child[1] is not None or child[0][1] is not None for child in children
        ):
            message.extra[CHILDREN].CopyFrom(_json(children))

    def _fit(self, message: task_pb2.TaskMeta, state: str) -> None:
        """Refuse a result that is too large; cut a failure, which has to be stored."""
        size = message.ByteSize()
        if size <= RECORD_BYTES_MAX:
            return
        failed = state in states.EXCEPTION_STATES
        if failed and message.HasField("failure"):
            message.failure.traceback = _cut(message.failure.traceback, TRACEBACK_BYTES_MAX)
        for field in ("args", "kwargs"):
            message.ClearField(field)
        for key in (STAMPS, CHILDREN, TRACEBACK):
            message.extra.pop(key, None)
        if message.ByteSize() > RECORD_BYTES_MAX:
            if not failed:
                raise EncodeError(
                    f"the result of {message.task_id} makes a record of {size} bytes, and resultd "
                    f"takes {RECORD_BYTES_MAX}: store the value elsewhere and return where it is"
                )
            self._cut_failure(message)
        logger.warning(
            "the record of %s would have %d bytes, and resultd takes %d: it is stored without "
            "what is large and neither its state nor its value",
            message.task_id,
            size,
            RECORD_BYTES_MAX,
        )

    def _cut_failure(self, message: task_pb2.TaskMeta) -> None:
        """Keep of an exception what it is and the beginning of what it says."""
        known = message.extra.pop(RESULT, None)
        if PART in message.extra:
            encoded = None if known is None else self.decode(known)
            message.extra[RESULT].CopyFrom(self.encode(_summary(encoded)))
            return
        if message.failure.module == "builtins" and not _is_exception(message.failure.type):
            message.failure.type, message.failure.module = _UNKNOWN
        message.failure.args.CopyFrom(_json([message.failure.message]))

    # Metas

    def meta(self, message: task_pb2.TaskMeta) -> dict[str, Any]:
        """Read a record into a task's meta as Celery knows it, exceptions rebuilt."""
        if not is_stored(message):
            return {"status": states.PENDING, "result": None}  # all that Celery's own has
        return self._known(message)

    def part_of(self, message: task_pb2.TaskMeta) -> dict[str, Any]:
        """Read a record as a chord's part: status and result, those of ignored tasks too."""
        if not _is_mere_part(message):
            return self.meta(message)
        state = json.loads(message.extra[PART].data)
        value = message.extra[RESULT] if state in states.EXCEPTION_STATES else message.value
        meta = {"status": state, "result": self.decode(value)}
        return self._with_exception(meta)

    def values(self, messages: list[task_pb2.TaskMeta]) -> list[Any] | None:
        """Read what tasks returned in one go; None unless all succeeded, with JSON.

        What each has is read as if it stood alone: a mark nobody can have written stands
        between any two, and comes out between them only if each is whole.
        """
        texts: list[bytes] = []
        for message in messages:  # thousands: no call for each
            payload = message.value
            if (
                message.state != state_pb2.STATE_SUCCESS
                or message.existence != state_pb2.EXISTENCE_KNOWN
                or payload.content_type != serialization.JSON
                or payload.content_encoding
                or PART in message.extra
            ):
                return None
            texts.append(payload.data)
        mark = uuid4().hex
        text = f',"{mark}",'.encode().join(texts)
        try:
            found = loads(b"[%b]" % text, serialization.JSON, "utf-8", accept=self._backend.accept)
        except (ContentDisallowed, DecodeError):
            return None  # whose it is, is found by reading them one by one
        values, marks = found[::2], found[1::2]
        whole = len(values) == len(messages) and all(each == mark for each in marks)
        return values if whole else None

    def _known(self, message: task_pb2.TaskMeta) -> dict[str, Any]:
        status = _records.state_name(message.state, message.custom_state)
        failed = status in states.EXCEPTION_STATES
        done = self._end_of(message) if status in states.READY_STATES else None
        meta: dict[str, Any] = {
            "status": status,
            "result": self._exception(message, status) if failed else self._value(message),
            "traceback": self._traceback(message, status, failed),
            "children": _children(message),
            "date_done": done.isoformat() if done else None,
        }
        group_id = message.labels.get(GROUP_LABEL) or message.group_id
        if group_id:
            meta["group_id"] = group_id
        if message.parent_id:
            meta["parent_id"] = message.parent_id
        meta["name"] = message.name or None
        meta["worker"] = message.worker or None
        meta["queue"] = message.queue or None
        meta["retries"] = message.retries
        if message.HasField("args"):
            meta["args"] = self.decode(message.args)
        if message.HasField("kwargs"):
            meta["kwargs"] = self.decode(message.kwargs)
        if STAMPS in message.extra:
            meta.update(self.decode(message.extra[STAMPS]))
        meta["task_id"] = message.task_id
        return self._with_exception(meta)

    def _end_of(self, message: task_pb2.TaskMeta) -> datetime.datetime | None:
        """When a task was done, in the app's time zone (`timezone`, `enable_utc`)."""
        done, zone = _records.moment(message, "done_time"), self._backend.app.timezone
        return done if done is None or zone is datetime.timezone.utc else done.astimezone(zone)

    def _with_exception(self, meta: dict[str, Any]) -> dict[str, Any]:
        read: dict[str, Any] = self._backend.meta_from_decoded(meta)
        return read

    def _value(self, message: task_pb2.TaskMeta) -> Any:
        if message.HasField("value"):
            return self.decode(message.value)
        if message.HasField("progress"):  # reported by a worker that knows no Celery
            shown = message.progress
            return {"current": shown.current, "total": shown.total, "message": shown.message}
        return None

    def _exception(self, message: task_pb2.TaskMeta, status: str) -> Any:
        """What `Backend.exception_to_python` takes."""
        failure = message.failure
        if not failure.HasField("args") and RESULT in message.extra:
            return self.decode(message.extra[RESULT])
        kind, module = failure.type, failure.module
        # What a native worker writes who says a message and no class.
        ours = not kind or (kind, module) == ("TaskError", "resultd.errors")
        if status == states.REVOKED and (ours or kind == "TaskRevokedError"):
            kind, module = "TaskRevokedError", "celery.exceptions"
        elif ours:
            kind, module = _UNKNOWN
        return {"exc_type": kind, "exc_message": self._args(failure), "exc_module": module}

    def _args(self, failure: value_pb2.Failure) -> list[Any]:
        if failure.HasField("args"):
            try:
                args = self.decode(failure.args)
            except (ContentDisallowed, DecodeError):
                args = None  # the message says it, too
            if isinstance(args, (list, tuple)):
                return list(args)
        return [failure.message]

    def _traceback(self, message: task_pb2.TaskMeta, status: str, failed: bool) -> str | None:
        if failed:
            return message.failure.traceback or None
        if TRACEBACK in message.extra:
            state, text = json.loads(message.extra[TRACEBACK].data)
            if state == status:
                return str(text)
        return None


class _End(threading.local):
    """When the task ended whose reports this thread is writing; 0: now."""

    time_ns = 0


def is_stored(message: task_pb2.TaskMeta) -> bool:
    """Whether a record is a task's result for Celery: there is one, and no mere chord's part."""
    return message.existence == state_pb2.EXISTENCE_KNOWN and not _is_mere_part(message)


def _is_mere_part(message: task_pb2.TaskMeta) -> bool:
    """Whether it is a chord's part only; the mark stays where its task has a result afterwards."""
    return message.state == state_pb2.STATE_IGNORED and PART in message.extra


def text_id(task_id: Any) -> str:
    """Take an id as Celery's users give it: text, bytes or a UUID."""
    if isinstance(task_id, bytes):
        return task_id.decode()
    return task_id if isinstance(task_id, str) else str(task_id)


def _id(task_id: Any) -> str:
    """A related task's id; empty where there is none, or none a server would take."""
    found = "" if task_id is None else text_id(task_id)
    return found if _ids.fits(found) else ""


def _with_text_ids(node: Any) -> Any:
    """A result's tuple with ids that are text."""
    (id_, parent), nodes = node
    return (
        (text_id(id_), None if parent is None else _with_text_ids(parent)),
        None if nodes is None else [_with_text_ids(each) for each in nodes],
    )


def ttl_fields(seconds: float | None) -> dict[str, Any]:
    """Return how long to keep something, as the requests say it; 0 and None for ever."""
    if not seconds or seconds > TTL_SECONDS_MAX:
        return {"no_expiry": True}
    return {"ttl": _records.duration(max(1.0, seconds))}


def _children(message: task_pb2.TaskMeta) -> list[Any] | None:
    if CHILDREN in message.extra:
        data = message.extra[CHILDREN].data
        found = None if data == _NO_CHILDREN else json.loads(data)
        ids = [child[0][0] for child in (found or ())[:CHILDREN_MAX]]
        field = [child.id for child in message.children]
        if not message.terminal or list(filter(_ids.fits, ids)) == field:
            return found if found is None else [_tupled(child) for child in found]
    return [
        ((child.id, None), [] if _records.is_group(child.kind) else None)
        for child in message.children
    ]


def _tupled(node: Any) -> Any:
    """Read a result's tuple out of JSON's lists."""
    (id_, parent), nodes = node
    return (
        (id_, None if parent is None else _tupled(parent)),
        None if nodes is None else [_tupled(each) for each in nodes],
    )


def _is_plain(result: Any) -> bool:
    return (
        isinstance(result, dict)
        and result.keys() == _EXCEPTION_KEYS
        and _is_name(result["exc_type"])
        and _is_name(result["exc_module"])
        and isinstance(result["exc_message"], (list, tuple))
    )


def _summary(encoded: Any) -> dict[str, Any]:
    """Make a short exception, as Celery writes them, of a long one."""
    if _is_plain(encoded):
        kind, module, text = encoded["exc_type"], encoded["exc_module"], encoded["exc_message"]
        return {"exc_type": kind, "exc_message": [_cut(_said(text))], "exc_module": module}
    kind, module = _UNKNOWN
    return {"exc_type": kind, "exc_message": [_cut(_str(encoded))], "exc_module": module}


def _is_exception(name: str) -> bool:
    found = getattr(builtins, name, None)
    return isinstance(found, type) and issubclass(found, BaseException)


def _is_name(value: object) -> bool:
    """Whether the failure's own field can hold it, as it is."""
    return isinstance(value, str) and value != "" and _text(value) == value


def _said(args: list[Any]) -> str:
    """What `str(exception)` would most likely be."""
    if not args:
        return ""
    return str(args[0]) if len(args) == 1 else str(tuple(args))


def _str(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 (an exception of somebody's whose __str__ fails)
        return type(value).__qualname__


def _clean(value: object) -> str:
    """Make text that UTF-8 can hold: a traceback may name files in bytes that are no text."""
    return _str(value).encode("utf-8", "backslashreplace").decode()


def _cut(text: str, limit: int = MESSAGE_BYTES_MAX) -> str:
    data = text.encode("utf-8", "backslashreplace")
    return data.decode() if len(data) <= limit else data[:limit].decode("utf-8", "ignore") + " …"


def _text(value: Any) -> str:
    """Make a short text for people."""
    if not isinstance(value, str):
        return ""
    data = value.encode("utf-8", "backslashreplace")
    return data[:TEXT_BYTES_MAX].decode("utf-8", "ignore")


def _bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)


def _json(value: Any) -> value_pb2.Payload:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    data = text.encode("utf-8", "surrogatepass")  # which json.loads() reads
    return value_pb2.Payload(content_type=serialization.JSON, data=data)


def _inflated(payload: value_pb2.Payload) -> bytes:
    encoding = payload.content_encoding
    if encoding in ("", "identity", "gzip", _DEFLATE):
        try:
            return serialization._decompress(payload.data, encoding)
        except SerializationError as error:
            raise DecodeError(str(error)) from error
    try:
        return bytes(decompress(payload.data, encoding))
    except KeyError as error:
        raise DecodeError(f"content encoding {encoding!r} is not known here") from error
    except Exception as error:  # each library raises what it likes
        raise DecodeError(f"these bytes are no {encoding}: {error}") from error
