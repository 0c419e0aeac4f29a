"""What can go wrong, as classes; and the one table from the server's reasons to them.

    try:
        value = client.AsyncResult("t1").get(timeout=10)
    except resultd.TimeoutError: ...        # nobody reported in time (also the builtin one)
    except resultd.TaskRevokedError: ...    # somebody cancelled the task
    except resultd.TaskError as error: ...  # the task failed with a class not known here
    except resultd.UnavailableError: ...    # no server answered, retries included

Everything here but the builtin a task itself raised derives from `ResultdError`.
"""

from __future__ import annotations

import builtins
import copy
from collections.abc import Mapping
from typing import TypeVar

__all__ = [
    "AlreadyExistsError",
    "AuthenticationError",
    "ClientClosedError",
    "DataLossError",
    "FailedPreconditionError",
    "GroupConflictError",
    "GroupNotFoundError",
    "GroupSealedError",
    "GroupTotalMismatchError",
    "IncompleteStream",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "PermissionDeniedError",
    "QuotaExceededError",
    "RemoteTraceback",
    "ResourceExhaustedError",
    "ResultGoneError",
    "ResultdError",
    "SecurityError",
    "SerializationError",
    "StoreFullError",
    "TaskError",
    "TaskRevokedError",
    "TimeoutError",
    "UnavailableError",
    "UnimplementedError",
    "ValueTooLargeError",
]


class ResultdError(Exception):
    """Base of all errors of this package.

    Attributes:
        code: name of the gRPC status code, "" if no call was involved.
        reason: the server's reason (`ErrorReason` without prefix), "" if it gave none.
        metadata: what the reason is about: field, limit, value.
        retry_delay: seconds the server asks to wait before the next try, or None.
        renewed: the credential was refused, and there is another one by now.
    """

    code: str = ""
    reason: str = ""
    metadata: Mapping[str, str] = {}
    retry_delay: float | None = None
    renewed: bool = False

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later. The client has retried already."""
        return self.code in RETRYABLE_CODES or self.reason in RETRYABLE_REASONS or self.renewed

    @property
    def final(self) -> bool:
        """Whether a stream that ended with this error must not be resumed."""
        return self.code in FINAL_CODES and not self.renewed


class TimeoutError(ResultdError, builtins.TimeoutError):  # noqa: A001 (Celery's name)
    """The time given to a wait ran out; the task may still finish."""


class UnavailableError(ResultdError):
    """No server answered, or the one that did has to be asked again later."""


class ClientClosedError(UnavailableError, RuntimeError):
    """The client was closed, before this was asked of it or while it was under way."""

    def __init__(self, message: str = "the client was closed") -> None:
        super().__init__(message)


class InvalidArgumentError(ResultdError, ValueError):
    """The server refused the request's contents; the sentence says what to change."""


class ValueTooLargeError(InvalidArgumentError):
    """The record would be over the server's limit (3 MiB): store the value elsewhere."""


class NotFoundError(ResultdError, LookupError):
    """The server knows no such thing."""


class GroupNotFoundError(NotFoundError):
    """There is no such group."""


class AlreadyExistsError(ResultdError):
    """There is something else of that name."""


class GroupConflictError(AlreadyExistsError):
    """The index belongs to another member, or the group exists with other contents."""


class FailedPreconditionError(ResultdError):
    """The thing is not in a state in which this can be done."""


class GroupSealedError(FailedPreconditionError):
    """The group takes no more members."""


class GroupTotalMismatchError(FailedPreconditionError):
    """The total is not the one the group was sealed with, or less than its members."""


class ResourceExhaustedError(ResultdError):
    """Something is used up: a quota, the store, or a message's size."""


class QuotaExceededError(ResourceExhaustedError):
    """The namespace has used what it may; `metadata` of a call's error names the quota."""


class StoreFullError(ResourceExhaustedError):
    """The store takes no more until something is deleted or expires."""


class AuthenticationError(ResultdError):
    """The credential is missing, not known (any more), or has expired."""


class PermissionDeniedError(ResultdError):
    """The credential does not allow this, or not in this namespace."""


class DataLossError(ResultdError):
    """A stored record is damaged."""


class UnimplementedError(ResultdError):
    """The server is older than this client, or is no resultd."""


class InternalError(ResultdError):
    """The server, or something on the way to it, broke."""


class SerializationError(ResultdError, ValueError):
    """A value cannot be encoded, or its bytes are not what they claim to be."""


class SecurityError(SerializationError):
    """The bytes are of a kind that was not switched on, for instance pickle."""


class IncompleteStream(ResultdError):
    """A graph was walked while one of its nodes was not ready."""


class ResultGoneError(ResultdError, LookupError):
    """A member counted, but its record was forgotten, deleted or has expired since."""


class RemoteTraceback(Exception):
    """The stack of a remote failure, shown as the cause of the exception rebuilt here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}"


class TaskError(ResultdError):
    """A task failed with an exception whose class is neither a builtin nor registered here.

    Attributes:
        type: the class as the worker named it, "HTTPError".
        module: where it lives there, "requests.exceptions".
        message: what it says.
        traceback: the worker's stack as text, "" if it sent none.
        args: the exception's arguments as far as they could be sent.
    """

    def __init__(
        self,
        type: str,  # noqa: A002 (the word the wire uses)
        message: str = "",
        traceback: str = "",
        module: str = "",
        args: tuple[object, ...] = (),
    ) -> None:
        super().__init__(type, message)
        self.type = type
        self.message = message
        self.traceback = traceback
        self.module = module
        self.args = args

    def __str__(self) -> str:
        name = self.type if self.module in ("", "builtins") else f"{self.module}.{self.type}"
        return f"{name}: {self.message}" if self.message else name

    def __reduce__(self) -> tuple[object, ...]:
        fields = (self.type, self.message, self.traceback, self.module, self.args)
        return (TaskError, fields)


class TaskRevokedError(TaskError):
    """The task was cancelled; `message` is the reason given."""

    def __init__(self, message: str = "revoked", traceback: str = "") -> None:
        super().__init__("TaskRevokedError", message, traceback, "resultd.errors", (message,))

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (TaskRevokedError, (self.message, self.traceback))


#: Codes after which the same call is tried again. CANCELLED is how a stopping server ends
#: calls it had taken and not begun; where we cancelled ourselves nobody asks. A bare
#: RESOURCE_EXHAUSTED is not among them: gRPC itself uses it for messages over a size
#: limit, which stay too large.
RETRYABLE_CODES = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})
RETRYABLE_REASONS = frozenset({"STORE_FULL", "QUOTA"})

#: Codes after which a stream is not resumed. Any other end is: proxies cut streams with
#: INTERNAL and UNKNOWN, too.
FINAL_CODES = frozenset(
    {
        "INVALID_ARGUMENT",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "NOT_FOUND",
        "FAILED_PRECONDITION",
        "UNIMPLEMENTED",
    }
)

#: The server's reason to a class; where it is not listed the code decides.
BY_REASON: Mapping[str, type[ResultdError]] = {
    "FIELD_INVALID": InvalidArgumentError,
    "LIMIT_EXCEEDED": InvalidArgumentError,
    "MALFORMED_MESSAGE": InvalidArgumentError,
    "VALUE_TOO_LARGE": ValueTooLargeError,
    "GROUP_NOT_FOUND": GroupNotFoundError,
    "GROUP_CONFLICT": GroupConflictError,
    "GROUP_SEALED": GroupSealedError,
    "GROUP_TOTAL_MISMATCH": GroupTotalMismatchError,
    "GROUP_NESTING": FailedPreconditionError,
    "OVERLOADED": UnavailableError,
    "DRAINING": UnavailableError,
    "STORE_FAILED": UnavailableError,
    "STORE_FULL": StoreFullError,
    "QUOTA": QuotaExceededError,
    "RECORD_CORRUPT": DataLossError,
    "CREDENTIAL_MISSING": AuthenticationError,
    "CREDENTIAL_INVALID": AuthenticationError,
    "CREDENTIAL_EXPIRED": AuthenticationError,
    "NAMESPACE_DENIED": PermissionDeniedError,
    "ROLE_INSUFFICIENT": PermissionDeniedError,
}

BY_CODE: Mapping[str, type[ResultdError]] = {
    "INVALID_ARGUMENT": InvalidArgumentError,
    "NOT_FOUND": NotFoundError,
    "ALREADY_EXISTS": AlreadyExistsError,
    "FAILED_PRECONDITION": FailedPreconditionError,
    "UNAVAILABLE": UnavailableError,
    "DEADLINE_EXCEEDED": UnavailableError,
    "RESOURCE_EXHAUSTED": ResourceExhaustedError,
    "UNAUTHENTICATED": AuthenticationError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "DATA_LOSS": DataLossError,
    "UNIMPLEMENTED": UnimplementedError,
}


def make(
    code: str,
    message: str,
    reason: str = "",
    metadata: Mapping[str, str] | None = None,
    retry_delay: float | None = None,
) -> ResultdError:
    """Build the error for a status: by its reason, else by its code, else `InternalError`."""
    cls = BY_REASON.get(reason) or BY_CODE.get(code) or InternalError
    error = cls(message or reason or code)
    error.code, error.reason, error.retry_delay = code, reason, retry_delay
    error.metadata = dict(metadata or {})
    return error


AnyError = TypeVar("AnyError", bound=BaseException)


def own(error: AnyError) -> AnyError:
    """Return a copy, to be raised in one thread of several: tracebacks grow where one is raised.

    Itself, of a foreign class that cannot be made of its arguments alone.
    """
    try:
        copied = copy.copy(error)
    except TypeError:
        return error
    copied.__cause__ = error.__cause__
    return copied
