"""From reasons to statuses: what a refusal, a bug and a caller that went away look like."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2, status_pb2

from resultd.v1 import error_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server.errors import DomainError, FieldInvalid, Overloaded, StoreFull
from resultd_server.interceptors import errors
from tests.support.in_process import Served
from tests.support.refusals import DETAILS_KEY, documented_codes

METHOD = "resultd.v1.ResultService.GetResult"


class Context:
    """A call's context, as far as errors go."""

    def __init__(self, *, gone: bool = False) -> None:
        self.ended: tuple[grpc.StatusCode, str, Any] | None = None
        self._gone = gone

    def invocation_metadata(self) -> tuple[()]:
        """Nothing was sent besides."""
        return ()

    def peer(self) -> str:
        """Who calls."""
        return "ipv4:127.0.0.1:1"

    async def abort(self, code: grpc.StatusCode, details: str, trailing: Any = ()) -> None:
        """Ends the call."""
        if self._gone:
            raise grpc.aio.InternalError("Failed execute_batch")
        self.ended = (code, details, trailing)
        self.aborted = grpc.aio.AbortError()  # gRPC keeps it with the call
        raise self.aborted


def raising(error: BaseException) -> Any:
    """A handler that raises, wrapped."""

    async def handler(_: object, __: object) -> bytes:
        raise error

    return errors.answer_errors(METHOD, handler)


async def test_who_is_refused_unread_is_not_looked_at() -> None:
    """Neither for the log: what a call says of itself may be as large as its peer likes."""
    context: Any = Context()
    context.invocation_metadata = None  # to ask for it fails
    with structlog.testing.capture_logs() as lines, pytest.raises(grpc.aio.AbortError):
        await raising(Overloaded("no room", unread=True))(b"", context)
    assert context.ended[0] == grpc.StatusCode.UNAVAILABLE
    [line] = lines
    assert (line["peer"], line["reason"]) == (context.peer(), "OVERLOADED")
    assert line["request_id"]


def test_every_reason_has_its_documented_code() -> None:
    """The server's table of codes is the one the protocol's comments give."""
    found = {
        error_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_"): code.name  # type: ignore[arg-type]  # its number
        for reason, code in errors.CODES.items()
    }
    assert found == documented_codes()


def test_every_refusal_has_a_reason_with_a_code() -> None:
    """No class of refusal is without a reason and a status code."""
    classes = DomainError.__subclasses__()
    assert len(classes) > 10
    for refusal in classes:
        assert refusal.reason in errors.CODES


@pytest.mark.parametrize(
    ("refusal", "retry"),
    [
        (FieldInvalid("f", "is wrong", "right it"), False),
        (Overloaded("Too much: wait."), True),
        (StoreFull("Full: forget something."), True),
    ],
)
async def test_a_refusal_is_a_status_with_details(refusal: DomainError, retry: bool) -> None:
    """Code, sentence, ErrorInfo; RetryInfo exactly where trying again may help; one log line."""
    context = Context()
    with structlog.testing.capture_logs() as lines, pytest.raises(grpc.aio.AbortError):
        await raising(refusal)(b"", context)
    assert context.ended is not None
    code, details, trailing = context.ended
    assert (code, details) == (errors.code_of(refusal), refusal.sentence)
    status = status_pb2.Status.FromString(dict(trailing)[DETAILS_KEY])
    assert (status.code, status.message) == (code.value[0], refusal.sentence)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("resultd", refusal.reason_name)
    assert dict(info.metadata) == refusal.metadata
    assert (len(status.details) == 2) == retry
    assert [line["event"] for line in lines] == ["refused"]


async def test_a_bug_is_internal_and_says_nothing_of_the_inside() -> None:
    """A bug answers INTERNAL with an id; the log has the traceback under the same id."""
    context = Context()
    with structlog.testing.capture_logs() as lines, pytest.raises(grpc.aio.AbortError):
        await raising(ZeroDivisionError("secret"))(b"", context)
    assert context.ended is not None
    code, details, _ = context.ended
    assert code == grpc.StatusCode.INTERNAL
    assert "secret" not in details
    [line] = lines
    assert (line["event"], line["exc_info"]) == ("failed", True)
    assert line["request_id"] in details


@pytest.mark.parametrize("error", [FieldInvalid("f", "is wrong", "right it"), ZeroDivisionError()])
async def test_a_caller_that_has_gone_cannot_be_told(error: Exception) -> None:
    """If the answer cannot be sent the call just ends, as a cancelled one does."""
    with structlog.testing.capture_logs(), pytest.raises(asyncio.CancelledError):
        await raising(error)(b"", Context(gone=True))


async def test_a_write_that_fails_is_not_a_bug() -> None:
    """gRPC's own word that the call is over is not logged as a failure."""
    with structlog.testing.capture_logs() as lines:
        with pytest.raises(asyncio.CancelledError):
            await raising(grpc.aio.InternalError("write"))(b"", Context())
        with pytest.raises(grpc.aio.UsageError):
            await raising(grpc.aio.UsageError("over"))(b"", Context())
    assert lines == []


async def test_a_cancellation_passes() -> None:
    """A cancelled handler stays cancelled: swallowed, gRPC would leak its call."""
    with pytest.raises(asyncio.CancelledError):
        await raising(asyncio.CancelledError())(b"", Context())


async def test_a_bug_over_a_socket_leaves_the_connection(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bug in one call the same connection answers the next."""

    async def broken(*_: object, **__: object) -> list[Any]:
        raise ZeroDivisionError

    with monkeypatch.context() as patched, structlog.testing.capture_logs():
        patched.setattr(served.app.engine, "get", broken)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.results.GetResult(pb.GetResultRequest(task_id="t"))
        assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert (await served.results.GetResult(pb.GetResultRequest(task_id="t"))).meta.task_id == "t"


class Request:
    """In the place of its bytes, which nothing can refer to weakly."""


@pytest.mark.parametrize("error", [Overloaded, ZeroDivisionError])
async def test_what_gRPC_keeps_of_a_refusal_keeps_no_request(  # noqa: N802  it is written so
    error: type[Exception],
) -> None:
    """It is free when the call is over, not when a collection finds it."""
    context: Any = Context()
    request: Any = Request()
    gone = weakref.ref(request)

    async def handler(raw: Any, _: object) -> bytes:
        raise error(f"of {type(raw)}")

    answered = errors.answer_errors(METHOD, handler)
    gc.disable()
    try:
        [said] = await asyncio.gather(answered(request, context), return_exceptions=True)
        assert said is context.aborted, "gRPC looks whether it is the same"
        del request
        assert gone() is None
    finally:
        gc.enable()
