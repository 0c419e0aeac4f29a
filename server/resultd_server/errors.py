"""What can go wrong, by its stable reason. Raised below, turned into statuses above.

    raise FieldInvalid("task_id", "is empty", "name the task")

Every refusal is a `DomainError`: a sentence with the remedy, a reason clients can
switch on, and facts for programs in `metadata`. `interceptors.errors` alone knows
which gRPC status a reason has.
"""

from __future__ import annotations

from resultd.v1 import error_pb2


class DomainError(Exception):
    """A refusal with a stable reason. Subclasses set `reason`."""

    reason: error_pb2.ErrorReason.ValueType = error_pb2.ERROR_REASON_UNSPECIFIED

    def __init__(self, sentence: str, /, **metadata: str | int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.metadata = {name: str(value) for name, value in metadata.items()}

    @property
    def reason_name(self) -> str:
        """The reason as it stands in ErrorInfo: without the enum's prefix."""
        return error_pb2.ErrorReason.Name(self.reason).removeprefix("ERROR_REASON_")


class FieldInvalid(DomainError):
    """A field is empty, too long, or contradicts another."""

    reason = error_pb2.ERROR_REASON_FIELD_INVALID

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field} {problem}: {remedy}.", field=field)


class MalformedMessage(DomainError):
    """The request's bytes are not the message they should be."""

    reason = error_pb2.ERROR_REASON_MALFORMED_MESSAGE


class LimitExceeded(DomainError):
    """More of something than a call, a group or a store may have."""

    reason = error_pb2.ERROR_REASON_LIMIT_EXCEEDED

    def __init__(self, field: str, count: int, limit: int, remedy: str) -> None:
        super().__init__(
            f"{field}: {count} are more than the {limit} there may be: {remedy}.",
            field=field,
            count=count,
            limit=limit,
        )


class ValueTooLarge(DomainError):
    """The record would be over its size limit."""

    reason = error_pb2.ERROR_REASON_VALUE_TOO_LARGE

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{what} would take {size_bytes} bytes and may take {limit_bytes}: keep large values "
            "elsewhere and report where.",
            size_bytes=size_bytes,
            limit_bytes=limit_bytes,
        )


class GroupNotFound(DomainError):
    """There is no such group."""

    reason = error_pb2.ERROR_REASON_GROUP_NOT_FOUND

    def __init__(self, group_id: str) -> None:
        super().__init__(
            f"There is no group {group_id!r}: create it first, or check its id and namespace.",
            group_id=group_id,
        )


class GroupConflict(DomainError):
    """An index belongs to another member, or the group has other contents."""

    reason = error_pb2.ERROR_REASON_GROUP_CONFLICT


class GroupSealed(DomainError):
    """The group takes no more members."""

    reason = error_pb2.ERROR_REASON_GROUP_SEALED


class GroupTotalMismatch(DomainError):
    """The total differs from the one before, or is less than the members known."""

    reason = error_pb2.ERROR_REASON_GROUP_TOTAL_MISMATCH


class GroupNesting(DomainError):
    """The group would contain itself, or be nested too deep."""

    reason = error_pb2.ERROR_REASON_GROUP_NESTING


class Overloaded(DomainError):
    """The server has more to do than it can queue.

    `unread`: nothing of the call was looked at, its metadata neither.
    """

    reason = error_pb2.ERROR_REASON_OVERLOADED

    def __init__(self, sentence: str, /, *, unread: bool = False, **metadata: str | int) -> None:
        super().__init__(sentence, **metadata)
        self.unread = unread


class Draining(DomainError):
    """The server is going down."""

    reason = error_pb2.ERROR_REASON_DRAINING


class StoreFull(DomainError):
    """The store takes no more until something is deleted."""

    reason = error_pb2.ERROR_REASON_STORE_FULL


class StoreFailed(DomainError):
    """The store failed and the server is stopping: fail-stop."""

    reason = error_pb2.ERROR_REASON_STORE_FAILED


class RecordCorrupt(DomainError):
    """A record does not match its checksum."""

    reason = error_pb2.ERROR_REASON_RECORD_CORRUPT


class Quota(DomainError):
    """The namespace has used what it may."""

    reason = error_pb2.ERROR_REASON_QUOTA


class CredentialMissing(DomainError):
    """The call brought no credential."""

    reason = error_pb2.ERROR_REASON_CREDENTIAL_MISSING

    def __init__(self) -> None:
        super().__init__(
            "This server wants a credential: send a token as metadata 'authorization: Bearer …' "
            "(the Python client and the command take one from RESULTD_TOKEN), or a client "
            "certificate it knows."
        )


class CredentialInvalid(DomainError):
    """Nobody knows the credential. Never says why, and never repeats it."""

    reason = error_pb2.ERROR_REASON_CREDENTIAL_INVALID

    def __init__(self) -> None:
        super().__init__("The credential is not known, or not any more: get a new one.")


class CredentialExpired(DomainError):
    """The credential was good until its time ran out."""

    reason = error_pb2.ERROR_REASON_CREDENTIAL_EXPIRED

    def __init__(self) -> None:
        super().__init__("The credential has expired: get a new one.")


class NamespaceDenied(DomainError):
    """The credential does not reach into the namespace, there or not."""

    reason = error_pb2.ERROR_REASON_NAMESPACE_DENIED

    def __init__(self, namespace: str) -> None:
        super().__init__(
            f"The credential does not reach into the namespace {namespace!r}: use another "
            "namespace, or ask for a role in this one.",
            namespace=namespace,
        )


class RoleInsufficient(DomainError):
    """The RPC needs a higher role."""

    reason = error_pb2.ERROR_REASON_ROLE_INSUFFICIENT

    def __init__(self, method: str, needed: str, role: str) -> None:
        super().__init__(
            f"{method} needs the role {needed}, the credential is {role} here: use another one.",
            method=method,
            needed=needed,
            role=role,
        )
