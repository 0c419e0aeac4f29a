"""Who called, as it stands in the log."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from resultd.v1 import result_service_pb2 as pb
from resultd_server import limits
from resultd_server.errors import Overloaded
from resultd_server.interceptors import Raw
from resultd_server.interceptors.access_log import caller, log_calls
from tests.support.server_process import ServerProcess


class Context:
    """A call's context, as far as the log looks at it."""

    def __init__(self, **said: str | bytes) -> None:
        self.said = tuple((name.replace("_", "-"), value) for name, value in said.items())

    def invocation_metadata(self) -> Any:
        """What was sent."""
        return self.said

    def peer(self) -> str:
        """Who calls."""
        return "ipv4:127.0.0.1:5"


def context(**said: str | bytes) -> Any:
    """A context with this metadata."""
    return Context(**said)


def test_the_callers_own_request_id_is_kept() -> None:
    """So that its log and ours can be read together; without one there is one of ours."""
    assert caller(context(x_request_id="abc-1.2:3/4"))["request_id"] == "abc-1.2:3/4"
    assert len(caller(context())["request_id"]) == 32
    assert caller(context()) != caller(context())


@pytest.mark.parametrize("said", ["", "x" * 129, "two words", "a\nb", "\x1b[31m", "ä", b"bytes"])
def test_a_request_id_that_could_do_harm_is_none(said: str | bytes) -> None:
    """Too long, or more than the harmless characters: the call has an id of ours."""
    assert caller(context(x_request_id=said))["request_id"] != said


def test_the_namespace_is_the_one_said() -> None:
    """As it was sent, valid or not, and as much of it as may be one; "default" if it was not."""
    assert caller(context())["namespace"] == "default"
    assert caller(context(resultd_namespace="Not Valid"))["namespace"] == "Not Valid"
    long = "n" * (limits.NAMESPACE_BYTES_MAX + 1)
    assert caller(context(resultd_namespace=long))["namespace"] == long[:-1]
    assert caller(context(resultd_namespace=long[:-1]))["namespace"] == long[:-1]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (None, "OK"),
        (Overloaded("full"), "OVERLOADED"),
        (asyncio.CancelledError(), "CANCELLED"),
        (grpc.aio.UsageError(), "CANCELLED"),
        (ZeroDivisionError(), "failed"),
    ],
)
async def test_every_call_leaves_one_line(error: BaseException | None, end: str) -> None:
    """However it ends, and what it raised goes on."""

    async def handler(raw: Raw, _: Any) -> bytes:
        if error is not None:
            raise error
        return b""

    with structlog.testing.capture_logs() as lines:
        call = log_calls("m", handler)(b"", context(x_request_id="r"))
        (ended,) = await asyncio.gather(call, return_exceptions=True)
    assert type(ended) is type(error or b"")
    (line,) = lines
    assert (line["log_level"], line["method"], line["end"]) == ("debug", "m", end)
    assert (line["request_id"], line["namespace"]) == ("r", "default")
    assert line["took_ms"] >= 0


def test_calls_are_logged_where_debugging_is_on_and_secrets_never(tmp_path: Path) -> None:
    """One line a call with its id; the token that came with it stands nowhere in the log."""
    secret = "not-to-be-seen"
    metadata = (
        ("x-request-id", "from-the-caller"),
        ("authorization", f"Bearer {secret}"),
        ("cookie", secret),
    )
    with (
        ServerProcess(tmp_path, "--log-level", "debug") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        call: Any = channel.unary_unary(
            "/resultd.v1.ResultService/GetResult",
            request_serializer=pb.GetResultRequest.SerializeToString,
        )
        call(pb.GetResultRequest(task_id="t"), metadata=metadata)
        with pytest.raises(grpc.RpcError):
            call(pb.GetResultRequest(), metadata=metadata)
        server.stop()
        lines = [json.loads(line) for line in server.log().splitlines()]
        assert secret not in server.log()
    ours = [line for line in lines if line.get("request_id") == "from-the-caller"]
    assert [(line["event"], line.get("end")) for line in ours] == [
        ("called", "OK"),
        ("called", "FIELD_INVALID"),
        ("refused", None),
    ]
