"""From a gRPC status to an exception of ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from resultd import errors
from resultd.v1 import error_pb2, result_service_pb2

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "resultd"
_INFO_TYPE = "google.rpc.ErrorInfo"
_RETRY_TYPE = "google.rpc.RetryInfo"
# All that gRPC says where a server wants TLS and is talked to without.
_HUNG_UP = "Socket closed"
_HINT = " (does the server want TLS? Then the address begins with resultds://)"


def from_rpc_error(error: grpc.RpcError, scheme: str) -> errors.ResultdError:
    """Turn what grpc raised into one of our errors, reason and delay included.

    `scheme`: of the address, for a hint where another one may be meant.
    """
    call = cast(Any, error)  # every RpcError raised by a call is a call itself
    said = call.details() or ""
    if scheme == "resultd" and said.endswith(_HUNG_UP):
        said += _HINT
    return from_status(call.code().name, said, call.trailing_metadata() or ())


def from_status(
    code: str, message: str, metadata: Iterable[tuple[str, str | bytes]]
) -> errors.ResultdError:
    """Build the error for a status code's name, its message and the trailing metadata."""
    info, delay = _details(metadata)
    if info is None or info.domain != DOMAIN:
        return errors.make(code, message, retry_delay=delay)
    return errors.make(code, message, info.reason, dict(info.metadata), delay)


def from_report_error(error: result_service_pb2.ReportError) -> errors.ResultdError:
    """Build the error of one report of a batch."""
    code = next((c.name for c in grpc.StatusCode if c.value[0] == error.code), "UNKNOWN")
    # Numbers a newer server may add are not in our enum: no name, no reason.
    value = error_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(error.reason)
    reason = value.name.removeprefix("ERROR_REASON_") if value and value.number else ""
    return errors.make(code, error.message, reason)


def _details(
    metadata: Iterable[tuple[str, str | bytes]],
) -> tuple[error_pb2.ErrorInfo | None, float | None]:
    raw = next((value for key, value in metadata if key == DETAILS_KEY), None)
    if not isinstance(raw, bytes):
        return None, None
    info: error_pb2.ErrorInfo | None = None
    delay: float | None = None
    try:
        for detail in error_pb2.StatusDetails.FromString(raw).details:
            name = detail.type_url.rpartition("/")[2]
            if name == _INFO_TYPE:
                info = error_pb2.ErrorInfo.FromString(detail.value)
            elif name == _RETRY_TYPE:
                pause = error_pb2.RetryInfo.FromString(detail.value).retry_delay
                delay = max(0.0, pause.seconds + pause.nanos / 1e9)
    except DecodeError:
        # Somebody between us and the server wrote these bytes; the code still stands.
        return None, None
    return info, delay
