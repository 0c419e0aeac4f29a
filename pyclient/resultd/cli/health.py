"""`health`: whether a server takes calls, for probes that run a command."""

from __future__ import annotations

from typing import Annotated, Any

import grpc
import typer
from google.protobuf import wrappers_pb2

from resultd import _channel, _url
from resultd.cli.options import DEFAULT_URL, CommandError, Url
from resultd.cli.output import escape

EXIT_NOT_SERVING = 1
STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
TIMEOUT_MAX_S = 86_400.0  # as of an address; gRPC takes 8e9 s and more for no time
_CHECK = "/grpc.health.v1.Health/Check"

Service = Annotated[
    str,
    typer.Option("--service", help="One service, resultd.v1.ResultService. Default: the server."),
]
Seconds = Annotated[
    float,
    typer.Option("--timeout", min=0.01, max=TIMEOUT_MAX_S, help="Seconds to wait for an answer."),
]


def health(url: Url = DEFAULT_URL, service: Service = "", timeout: Seconds = 3.0) -> None:
    """Ask whether the server takes calls: exit code 0 if so, 1 if not, 2 if nobody answers."""
    try:
        address = _url.parse(url)
    except ValueError as error:
        raise CommandError(str(error)) from None
    try:
        status = check(address, service, timeout)
    except (grpc.RpcError, OSError) as error:
        where = address.shown.partition("?")[0]
        raise CommandError(f"no server answers at {where} ({_why(error)})") from None
    typer.echo(status)
    if status != "SERVING":
        raise typer.Exit(EXIT_NOT_SERVING)


def check(address: _url.Url, service: str, timeout: float) -> str:
    """Return the status by its name in `grpc.health.v1`.

    Raises:
        grpc.RpcError: nobody answered.
        OSError: a certificate cannot be read.
    """
    with _channel.connect(address) as channel:
        # Both messages have one field, its number 1: protobuf's own wrappers fit, and the
        # client needs no package for two messages.
        method: Any = channel.unary_unary(
            _CHECK,
            request_serializer=wrappers_pb2.StringValue.SerializeToString,
            response_deserializer=wrappers_pb2.UInt32Value.FromString,
        )
        try:
            answer = method(
                wrappers_pb2.StringValue(value=service),
                timeout=timeout,
                wait_for_ready=False,
            )
        except grpc.RpcError as error:
            call: Any = error  # what a call raises is the call, which its type does not say
            if call.code() == grpc.StatusCode.NOT_FOUND:
                return "SERVICE_UNKNOWN"
            raise
    return STATUSES[answer.value] if answer.value < len(STATUSES) else STATUSES[0]


def _why(error: Exception) -> str:
    if isinstance(error, grpc.Call):
        return escape(f"{error.code().name}: {error.details()}")
    return str(error)
