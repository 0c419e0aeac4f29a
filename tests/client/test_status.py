"""From gRPC statuses to errors."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration

from resultd import _status, errors
from resultd.v1 import error_pb2, result_service_pb2


def details(*messages: object, domain: str = "resultd") -> list[tuple[str, str | bytes]]:
    """Trailing metadata with an ErrorInfo and a RetryInfo, as any gRPC server writes them."""
    info = error_pb2.ErrorInfo(reason="OVERLOADED", domain=domain, metadata={"limit": "7"})
    retry = error_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    status = error_pb2.StatusDetails(
        details=[
            AnyMessage(
                type_url="type.googleapis.com/google.rpc.ErrorInfo", value=info.SerializeToString()
            ),
            AnyMessage(
                type_url="type.googleapis.com/google.rpc.RetryInfo", value=retry.SerializeToString()
            ),
            AnyMessage(type_url="type.googleapis.com/other.Thing", value=b"?"),
        ]
    )
    return [("x", "y"), (_status.DETAILS_KEY, status.SerializeToString())]


def test_reason_metadata_and_delay_are_read() -> None:
    """What stands in grpc-status-details-bin becomes class and fields."""
    error = _status.from_status("UNAVAILABLE", "later", details())
    assert type(error) is errors.UnavailableError
    assert (error.reason, error.metadata, error.retry_delay) == ("OVERLOADED", {"limit": "7"}, 1.5)
    assert str(error) == "later"


class HungUp(grpc.RpcError):
    """What a call raises whose connection was closed."""

    def code(self) -> grpc.StatusCode:
        """No server, to all appearances."""
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """All that gRPC says."""
        return "failed to connect to all addresses; last error: Socket closed"

    def trailing_metadata(self) -> Any:
        """There is none."""
        return ()


@pytest.mark.parametrize(
    ("scheme", "hinted"), [("resultd", True), ("resultds", False), ("resultd+unix", False)]
)
def test_a_plain_connection_that_is_closed_may_want_tls(scheme: str, hinted: bool) -> None:
    """The hint names the scheme, and comes where that may be it."""
    error = _status.from_rpc_error(HungUp(), scheme)
    assert ("resultds://" in str(error)) is hinted
    assert error.code == "UNAVAILABLE"


def test_reasons_of_other_domains_are_not_ours() -> None:
    """A proxy's ErrorInfo does not choose the class."""
    error = _status.from_status("RESOURCE_EXHAUSTED", "", details(domain="proxy"))
    assert type(error) is errors.ResourceExhaustedError
    assert error.reason == ""


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"", "text"])
def test_damaged_details_leave_the_code(raw: bytes | str) -> None:
    """Bytes that are no status do not hide the error."""
    error = _status.from_status("INTERNAL", "x", [(_status.DETAILS_KEY, raw)])
    assert type(error) is errors.InternalError


def test_the_error_of_a_report_is_as_that_of_a_call() -> None:
    """A refused report of a batch carries code, reason and class."""
    refused = result_service_pb2.ReportError(
        code=3, reason=error_pb2.ERROR_REASON_VALUE_TOO_LARGE, message="too large"
    )
    error = _status.from_report_error(refused)
    assert type(error) is errors.ValueTooLargeError
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "VALUE_TOO_LARGE")
    unknown = result_service_pb2.ReportError(code=999, message="?")
    assert type(_status.from_report_error(unknown)) is errors.InternalError
