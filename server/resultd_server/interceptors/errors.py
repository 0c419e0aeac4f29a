"""From reasons to statuses: the one place that knows both.

A refusal is a status code, a sentence with the remedy, and `google.rpc.ErrorInfo`; it
leaves one line in the log. A bug is INTERNAL with a traceback in the log and nothing
about the inside in the answer.
"""

from __future__ import annotations

import asyncio
import time

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from resultd.v1 import error_pb2
from resultd_server.errors import DomainError, Overloaded
from resultd_server.interceptors import Context, Handler, Raw
from resultd_server.interceptors.access_log import caller, stranger

DOMAIN = "resultd"
RETRY_DELAY_S = 1

CODES: dict[int, grpc.StatusCode] = {
    error_pb2.ERROR_REASON_FIELD_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_LIMIT_EXCEEDED: grpc.StatusCode.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_VALUE_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_MALFORMED_MESSAGE: grpc.StatusCode.INVALID_ARGUMENT,
    error_pb2.ERROR_REASON_GROUP_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    error_pb2.ERROR_REASON_GROUP_CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    error_pb2.ERROR_REASON_GROUP_SEALED: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_GROUP_TOTAL_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_GROUP_NESTING: grpc.StatusCode.FAILED_PRECONDITION,
    error_pb2.ERROR_REASON_OVERLOADED: grpc.StatusCode.UNAVAILABLE,
    error_pb2.ERROR_REASON_DRAINING: grpc.StatusCode.UNAVAILABLE,
    error_pb2.ERROR_REASON_STORE_FAILED: grpc.StatusCode.UNAVAILABLE,
    error_pb2.ERROR_REASON_STORE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_QUOTA: grpc.StatusCode.RESOURCE_EXHAUSTED,
    error_pb2.ERROR_REASON_RECORD_CORRUPT: grpc.StatusCode.DATA_LOSS,
    error_pb2.ERROR_REASON_CREDENTIAL_MISSING: grpc.StatusCode.UNAUTHENTICATED,
    error_pb2.ERROR_REASON_CREDENTIAL_INVALID: grpc.StatusCode.UNAUTHENTICATED,
    error_pb2.ERROR_REASON_CREDENTIAL_EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    error_pb2.ERROR_REASON_NAMESPACE_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    error_pb2.ERROR_REASON_ROLE_INSUFFICIENT: grpc.StatusCode.PERMISSION_DENIED,
}

_RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})

log = structlog.get_logger("resultd.calls")


def code_of(error: DomainError) -> grpc.StatusCode:
    """The status code of a refusal."""
    return CODES[error.reason]


def status_of(error: DomainError) -> status_pb2.Status:
    """The refusal as `google.rpc.Status`."""
    code = code_of(error)
    status = status_pb2.Status(code=code.value[0], message=error.sentence)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason_name, domain=DOMAIN, metadata=error.metadata
    )
    status.details.append(_pack(info))
    if code in _RETRYABLE:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = RETRY_DELAY_S
        status.details.append(_pack(retry))
    return status


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def answer_errors(method: str, handler: Handler) -> Handler:
    """Turns what a handler raises into a status."""

    async def answered(raw: Raw, context: Context) -> bytes | None:
        began_s = time.monotonic()
        try:
            return await handler(raw, context)
        except DomainError as error:
            code = code_of(error)
            unread = isinstance(error, Overloaded) and error.unread
            log.warning(
                "refused",
                method=method,
                code=code.name,
                reason=error.reason_name,
                why=error.sentence,
                took_ms=round((time.monotonic() - began_s) * 1000, 3),
                **(stranger if unread else caller)(context),
            )
            await _abort(context, status_of(error))
        except grpc.aio.BaseError:
            raise  # gRPC's own: the call is over already
        except Exception:  # the outermost frame: a bug must not end the connection
            who = caller(context)
            log.exception("failed", method=method, **who)
            await context.abort(
                grpc.StatusCode.INTERNAL,
                f"The server failed: look for request_id {who['request_id']} in its log.",
            )
        return None

    async def wrapped(raw: Raw, context: Context) -> bytes | None:
        try:
            return await answered(raw, context)
        except grpc.aio.AbortError as aborted:
            # gRPC keeps it with the call: without what it came by, whose frames hold the request,
            # and without the call, so that it goes with the call and not with a collection.
            aborted.__context__ = None
            raw = b""
            del context
            raise aborted.with_traceback(None) from None
        except grpc.aio.InternalError:
            # gRPC's core took no more: the caller has gone, and nobody can be answered.
            raise asyncio.CancelledError from None

    return wrapped


async def _abort(context: Context, status: status_pb2.Status) -> None:
    rpc = rpc_status.to_status(status)
    await context.abort(rpc.code, rpc.details, rpc.trailing_metadata)
