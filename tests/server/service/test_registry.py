"""The edge of the server: what arrives that is no sound gRPC call."""

from __future__ import annotations

import base64
import json
import socket
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import result_service_pb2_grpc, state_pb2
from tests.support import http2, reports
from tests.support.raw_calls import call
from tests.support.request_fields import METHODS, SERVICES
from tests.support.results import until
from tests.support.server_process import ServerProcess

STORE = "/resultd.v1.ResultService/StoreResult"


def still_answers(channel: grpc.Channel) -> bool:
    """Whether an ordinary call is answered."""
    stub = result_service_pb2_grpc.ResultServiceStub(channel)
    return bool(stub.GetResult(pb.GetResultRequest(task_id="t"), timeout=10).meta.task_id)


def _json(task_id: str) -> bytes:
    said = {"meta": {"taskId": task_id, "state": "STATE_SUCCESS", "value": {}}}
    return json.dumps(said).encode()


def _grpc_web_text(task_id: str) -> bytes:
    body = reports.success(task_id).SerializeToString()
    return base64.b64encode(b"\0" + len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", _json("typed")),
        ("application/grpc-web-text", _grpc_web_text("typed")),
        ("application/x-www-form-urlencoded", b"task_id=typed&state=SUCCESS"),
        ("application/grpc", _json("typed")),
    ],
    ids=["json", "grpc-web-text", "form", "json as grpc"],
)
def test_a_body_that_is_not_grpcs_is_not_stored(
    server: ServerProcess, channel: grpc.Channel, content_type: str, body: bytes
) -> None:
    """JSON, forms and grpc-web's text end their call, store nothing and harm nobody."""
    before = len(server.log())
    raw = http2.request(STORE, body, content_type, framed=False)
    kinds = http2.answer(server.address, raw)
    assert kinds & {http2.HEADERS, http2.RST_STREAM, http2.GOAWAY}
    stub = result_service_pb2_grpc.ResultServiceStub(channel)
    got = stub.GetResult(pb.GetResultRequest(task_id="typed"))
    assert got.meta.existence == state_pb2.EXISTENCE_UNKNOWN
    assert "Traceback" not in server.log()[before:]


def test_the_window_of_a_message_does_not_grow_by_itself(server: ServerProcess) -> None:
    """gRPC widens it after a ping that measures the line: calls nobody has looked at would lie
    in memory whole, up to 16 MiB each.
    """
    body = reports.success("wide", b"x" * 60_000).SerializeToString()
    pieces = [body[at : at + 16_000] for at in range(0, len(body), 16_000)]
    head, rest = http2.message(body)[:5] + pieces[0], pieces[1:]
    frames = [http2.frame(http2.DATA, 0, http2.STREAM, piece) for piece in (head, *rest[:-1])]
    frames.append(http2.frame(http2.DATA, http2.END_STREAM, http2.STREAM, rest[-1]))
    block = http2.header_block(http2.call_headers(STORE))
    began = http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0)
    began += http2.frame(http2.HEADERS, http2.END_HEADERS, http2.STREAM, block)
    kinds = http2.answer(server.address, began + b"".join(frames))
    assert http2.DATA in kinds, "it is stored"
    assert http2.PING not in kinds


@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc-web", "text/plain"])
def test_the_bytes_decide_whatever_they_are_called(
    server: ServerProcess, channel: grpc.Channel, content_type: str
) -> None:
    """gRPC's core does not look at the content type: a sound gRPC message is a call."""
    task_id = f"sound {content_type}"
    body = reports.success(task_id).SerializeToString()
    kinds = http2.answer(server.address, http2.request(STORE, body, content_type))
    assert {http2.HEADERS, http2.DATA} <= kinds
    stub = result_service_pb2_grpc.ResultServiceStub(channel)
    got = stub.GetResult(pb.GetResultRequest(task_id=task_id))
    assert got.meta.existence == state_pb2.EXISTENCE_KNOWN


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
        b"\0" * 4096,
        http2.PREFACE + b"\xff" * 4096,
        http2.PREFACE + http2.frame(http2.HEADERS, 4, 1, b"\xff\xff\xff"),
        http2.request(STORE, b"x", "application/grpc")[:-1],
        http2.request("/no/such", b"", "application/grpc"),
        http2.request(STORE, b"", "application/grpc", method="GET"),
        http2.request(STORE, b"\1\0\0\0\1x", "application/grpc", framed=False),
        http2.request(STORE, b"", None, framed=False),  # gRPC waits for a message to the end
    ],
    ids=["http1", "tls", "zeros", "noise", "hpack", "cut", "path", "get", "compressed", "empty"],
)
def test_what_is_no_grpc_harms_nobody(
    server: ServerProcess, channel: grpc.Channel, raw: bytes
) -> None:
    """Other protocols, noise and cut requests end their own connection, without a traceback."""
    before = server.log_bytes()
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert still_answers(channel)
    assert "Traceback" not in server.log()[before:]


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    """A method or service that is not there is UNIMPLEMENTED."""
    for path in ("/resultd.v1.ResultService/Nothing", "/no.such.Service/Nothing"):
        unary = channel.unary_unary(path, bytes, bytes)
        with pytest.raises(grpc.RpcError) as caught:
            unary(b"", timeout=10)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_message_beyond_16_mib_is_refused_by_grpc(channel: grpc.Channel) -> None:
    """Over 16 MiB gRPC refuses before we see it: RESOURCE_EXHAUSTED with the numbers, no crash."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, METHODS["resultd.v1.ResultService.StoreResult"], b"x" * (17 << 20))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "16777216" in (caught.value.details() or "")
    assert still_answers(channel)


def test_metadata_over_8_kib_is_refused(channel: grpc.Channel) -> None:
    """Metadata under 8 KiB passes, over it the call is refused: always, not at random."""
    get = METHODS["resultd.v1.ResultService.GetResult"]
    raw = pb.GetResultRequest(task_id="t").SerializeToString()
    for _ in range(4):
        assert call(channel, get, raw, (("padding", "x" * 7_000),))
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, get, raw, (("padding", "x" * 9_000),))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_namespace_said_twice_is_refused(channel: grpc.Channel) -> None:
    """Two namespaces in one call are FIELD_INVALID, even if they are the same."""
    raw = pb.GetResultRequest(task_id="t").SerializeToString()
    twice = (("resultd-namespace", "a"), ("resultd-namespace", "a"))
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, METHODS["resultd.v1.ResultService.GetResult"], raw, twice)
    assert caught.value.details() == "resultd-namespace is said twice: say it once."


def test_reflection_tells_every_service_and_its_streams(channel: grpc.Channel) -> None:
    """Reflection lists our services and health, and describes bidirectional methods as such."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # the same
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="resultd.v1.ResultService"),
    ]
    listed, described = list(stub.ServerReflectionInfo(iter(asked)))
    names = {service.name for service in listed.list_services_response.service}
    assert {service.full_name for service in SERVICES} | {"grpc.health.v1.Health"} <= names
    [raw] = [
        each
        for each in described.file_descriptor_response.file_descriptor_proto
        if b"ResultService" in each
    ]
    [service] = descriptor_pb2.FileDescriptorProto.FromString(raw).service
    [watch] = [method for method in service.method if method.name == "Watch"]
    assert (watch.client_streaming, watch.server_streaming) == (True, True)


def test_health_says_serving_for_the_server_and_each_service(channel: grpc.Channel) -> None:
    """Health is SERVING for "" and every service of ours, and does not know others."""
    stub: Any = health_pb2_grpc.HealthStub(channel)  # untyped in some versions
    for name in ("", *(service.full_name for service in SERVICES)):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_garbage_for_health_leaves_one_line(server: ServerProcess, channel: grpc.Channel) -> None:
    """Malformed bytes for gRPC's own services are refused as those for ours, with a line."""
    before = len(server.log())
    unary = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
    with pytest.raises(grpc.RpcError) as caught:
        unary(b"\xff\xff", timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert still_answers(channel)
    until(lambda: len(server.log()) > before)  # a line is written as a whole, and soon
    [line] = server.log()[before:].splitlines()
    assert "MALFORMED_MESSAGE" in line
