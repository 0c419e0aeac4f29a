"""Exceptions to `Failure` messages and back, running nothing a message names.

Coming back, a class is only ever looked up in two closed tables: the builtins derived from
`Exception`, and what the program registered. No module is imported, no attribute followed.
"""

from __future__ import annotations

import builtins
import json
import traceback as tracebacks
from collections.abc import Mapping

from resultd.errors import RemoteTraceback, SerializationError, TaskError, TaskRevokedError
from resultd.serialization import JSON, Registry
from resultd.v1 import value_pb2

# A chain of causes is cut here, in both directions: `raise ... from` in a loop is endless.
CAUSES_MAX = 8
# The server keeps 64 KiB of a traceback; sending more is waste.
TRACEBACK_BYTES_MAX = 64 * 1024
ARGS_BYTES_MAX = 64 * 1024

# An exception that ends generators would end ours, silently: it comes back as TaskError.
_BUILTINS: Mapping[str, type[Exception]] = {
    name: cls
    for name, cls in vars(builtins).items()
    if isinstance(cls, type)
    and issubclass(cls, Exception)
    and not issubclass(cls, (StopIteration, StopAsyncIteration))
}
_REVOKED_NAMES = frozenset(
    {("resultd.errors", "TaskRevokedError"), ("celery.exceptions", "TaskRevokedError")}
)


def failure_from(result: object, traceback: object = None) -> value_pb2.Failure:
    """Describe why a task failed.

    `result` is the exception; or a string, its message; or Celery's mapping of `exc_type`,
    `exc_message` and `exc_module`. `traceback` is text and wins over the exception's own.

    Raises:
        TypeError: `result` is none of these.
    """
    text = _cut(str(traceback)) if traceback else ""
    if isinstance(result, BaseException):
        return _from_exception(result, text, CAUSES_MAX)
    if isinstance(result, Mapping) and "exc_type" in result:
        return _from_mapping(result, text)
    if isinstance(result, str) or result is None:
        return value_pb2.Failure(
            type="TaskError",
            module="resultd.errors",
            message=result or "",
            traceback=text,
            language="python",
        )
    raise TypeError(f"a failure is an exception or a message, not a {type(result).__name__}")


def exception_from(failure: value_pb2.Failure, registry: Registry) -> Exception:
    """Rebuild an exception; its `__cause__` is the remote cause, else the remote stack."""
    return _rebuild(failure, registry, CAUSES_MAX)


def revoked_from(failure: value_pb2.Failure | None, registry: Registry) -> Exception:
    """Rebuild what REVOKED stands for: a registered class, else `TaskRevokedError`."""
    if failure is None:
        return TaskRevokedError()
    known = registry.exception_class(failure.module, failure.type)
    if known is not None:
        return _rebuild(failure, registry, CAUSES_MAX)
    return TaskRevokedError(failure.message or "revoked", failure.traceback)


def _from_exception(error: BaseException, text: str, causes: int) -> value_pb2.Failure:
    cls = type(error)
    if isinstance(error, TaskError):  # passed on from another task: keep what it was there
        name, module, message = error.type, error.module, error.message
    else:
        name, module, message = cls.__qualname__, cls.__module__, _message(error)
    failure = value_pb2.Failure(
        type=name,
        module=module,
        message=message,
        args=value_pb2.Payload(content_type=JSON, data=_args(error)),
        traceback=text or _own_traceback(error),
        language="python",
        retryable=bool(getattr(error, "retryable", False)),
    )
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and causes > 0 and not isinstance(cause, RemoteTraceback):
        failure.cause.CopyFrom(_from_exception(cause, "", causes - 1))
    return failure


def _from_mapping(result: Mapping[str, object], text: str) -> value_pb2.Failure:
    message = result.get("exc_message", "")
    args = message if isinstance(message, (list, tuple)) else (message,)
    return value_pb2.Failure(
        type=str(result["exc_type"]),
        module=str(result.get("exc_module") or ""),
        message=" ".join(map(str, args)),
        args=value_pb2.Payload(content_type=JSON, data=_args(Exception(*args))),
        traceback=text,
        language="python",
    )


def _message(error: BaseException) -> str:
    try:
        return str(error).encode(errors="backslashreplace").decode()
    except Exception:  # noqa: BLE001 (a broken __str__ must not hide that the task failed)
        return f"<{type(error).__name__} whose message cannot be shown>"


def _args(error: BaseException) -> bytes:
    """Write the arguments as a JSON array; what JSON cannot say becomes its repr."""
    shown = []
    for arg in error.args:
        try:
            shown.append(json.dumps(arg))
        except (TypeError, ValueError, RecursionError):
            shown.append(json.dumps(_repr(arg)))
    data = f"[{','.join(shown)}]".encode()
    return data if len(data) <= ARGS_BYTES_MAX else json.dumps([_message(error)[:1000]]).encode()


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 (as in _message)
        return f"<{type(value).__name__}>"


def _own_traceback(error: BaseException) -> str:
    if isinstance(error, TaskError) and error.traceback:
        return _cut(error.traceback)
    if error.__traceback__ is None:
        return ""
    lines = tracebacks.format_exception(type(error), error, error.__traceback__, chain=False)
    return _cut("".join(lines))


def _cut(text: str) -> str:
    """Keep the end of a long text, where the error is, within the server's limit."""
    data = text.encode(errors="backslashreplace")
    if len(data) <= TRACEBACK_BYTES_MAX:
        return data.decode()
    mark = "[... cut ...]\n"
    return mark + data[-(TRACEBACK_BYTES_MAX - len(mark)) :].decode(errors="ignore")


def _rebuild(failure: value_pb2.Failure, registry: Registry, causes: int) -> Exception:
    error = _instance(failure, _read_args(failure, registry), registry)
    if failure.HasField("cause") and causes > 0:
        error.__cause__ = _rebuild(failure.cause, registry, causes - 1)
    elif failure.traceback:
        error.__cause__ = RemoteTraceback(failure.traceback)
    return error


def _instance(
    failure: value_pb2.Failure, args: tuple[object, ...], registry: Registry
) -> Exception:
    key = (failure.module, failure.type)
    if key in _REVOKED_NAMES:
        return TaskRevokedError(failure.message or "revoked", failure.traceback)
    cls = registry.exception_class(*key)
    if cls is None and failure.module == "builtins":
        cls = _BUILTINS.get(failure.type)
    for attempt in (args, (failure.message,)) if cls is not None else ():
        try:
            error = cls(*attempt)  # type: ignore[misc]  # the loop is empty where cls is None
        except Exception:  # noqa: BLE001 (arguments that do not fit: TaskError says them)
            continue
        if isinstance(error, Exception):
            return error
    name = failure.type or "UnknownError"
    return TaskError(name, failure.message, failure.traceback, failure.module, args)


def _read_args(failure: value_pb2.Failure, registry: Registry) -> tuple[object, ...]:
    if failure.HasField("args"):
        try:
            args = registry.decode(failure.args)
        except SerializationError:
            args = None  # a pickle, or nonsense: the message has to do
        if isinstance(args, list):
            return tuple(args)
    return (failure.message,)
