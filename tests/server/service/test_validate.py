"""Bad input over every RPC: refused by name, one line in the log, nothing stored."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor

from resultd.v1 import (
    error_pb2,
    group_service_pb2,
    group_service_pb2_grpc,
    result_service_pb2,
    result_service_pb2_grpc,
    state_pb2,
    task_pb2,
    value_pb2,
)
from resultd_server import limits
from resultd_server.service import validate
from tests.support import reports
from tests.support.raw_calls import Metadata, call
from tests.support.refusals import Refusal, documented_codes, taken_apart
from tests.support.request_fields import (
    ANYTHING,
    KINDS,
    METHODS,
    OUTPUT,
    TEMPLATES,
    WHOLE,
    Case,
    cases,
    described,
    fields,
    is_repeated,
    key,
)
from tests.support.results import until
from tests.support.server_process import ServerProcess

NAMESPACE: Metadata = (("resultd-namespace", "refused"),)
CASES = list(cases())
DOCUMENTED = documented_codes()
STORE, BATCH = "resultd.v1.ResultService.StoreResult", "resultd.v1.ResultService.BatchStoreResults"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server, of one process, that leaves no line out."""
    program = ("tests.support.talkative_server",)
    directory = tmp_path_factory.mktemp("server")
    with ServerProcess(directory, "--workers", "1", program=program) as process:
        yield process


def refused(
    server: ServerProcess,
    channel: grpc.Channel,
    method: str,
    raw: bytes,
    metadata: Metadata = NAMESPACE,
) -> Refusal:
    """The refusal of a call that must be refused, and leave one line in the log."""
    before = server.log_bytes()
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, METHODS[method], raw, metadata)
    refusal = taken_apart(caught.value)
    until(lambda: server.log_bytes() > before)  # a line is written as a whole, and soon
    lines = server.log_lines(before)
    assert [line["event"] for line in lines] == ["refused"]
    assert (lines[0]["method"], lines[0]["reason"]) == (method, refusal.reason)
    assert lines[0]["why"] == refusal.sentence
    return refusal


def nothing_stored(channel: grpc.Channel, namespace: Metadata = NAMESPACE) -> bool:
    """Whether the namespace holds no record and no group."""
    results = result_service_pb2_grpc.ResultServiceStub(channel)
    groups = group_service_pb2_grpc.GroupServiceStub(channel)
    records = results.ListResults(result_service_pb2.ListResultsRequest(), metadata=namespace)
    found = groups.ListGroups(group_service_pb2.ListGroupsRequest(), metadata=namespace)
    return not records.metas and not found.groups


def test_every_rpc_and_field_has_its_bad_input() -> None:
    """An RPC without a template, or a field without a kind or never reached, fails the tests."""
    assert set(TEMPLATES) == set(METHODS)
    every = set()
    for method, descriptor in METHODS.items():
        reached = {key(field) for _, field in fields(method)}
        if method == BATCH:  # its reports are spoiled below, and in tests/faults/test_limits.py
            reached |= {key(field) for _, field in fields(STORE)}
        assert reached == {key(field) for field in described(descriptor.input_type)}, method
        every |= reached
    assert every == set(KINDS)
    for name, kind in KINDS.items():
        if kind is not None and not (kind.wrong or kind.bounds):
            assert any(kind is quiet for quiet in (ANYTHING, OUTPUT, WHOLE)), name


def test_what_can_grow_is_bounded() -> None:
    """Every repeated field of a request has a bound by number, every text one by bytes.

    But for what counts in the whole: then the request, and the record, is the bound.
    """
    one_length = {"TaskMeta.traceparent"}
    for descriptor in METHODS.values():
        for field in described(descriptor.input_type):
            kind = KINDS[key(field)]
            if is_repeated(field):
                assert kind is not None, key(field)
                assert any(bound.what == "count" for bound in kind.bounds), key(field)
            elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
                assert kind is not None, key(field)
                assert kind.bounds or kind.whole or key(field) in one_length, key(field)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_by_name(
    server: ServerProcess, channel: grpc.Channel, case: Case
) -> None:
    """Bad input gets its documented code, reason and remedy; one log line; nothing is stored."""
    refusal = refused(server, channel, case.method, case.request())
    assert refusal.reason == case.reason
    assert refusal.code == DOCUMENTED[case.reason]
    assert refusal.domain == "resultd"
    assert ": " in refusal.sentence
    assert refusal.sentence.endswith(".")
    assert refusal.retry_delay_s == 0
    assert nothing_stored(channel)


def _malformed() -> Iterator[tuple[str, bytes]]:
    for method, descriptor in METHODS.items():
        yield method, b"\xff\xff"
        yield method, b"\x0a\x05cut"
        for field in descriptor.input_type.fields:
            if field.type == FieldDescriptor.TYPE_STRING:
                yield method, bytes((field.number << 3 | 2, 2)) + b"\xff\xfe"


@pytest.mark.parametrize(("method", "raw"), list(_malformed()))
def test_bytes_that_are_no_message_are_refused(
    server: ServerProcess, channel: grpc.Channel, method: str, raw: bytes
) -> None:
    """Bytes that are not a protobuf, or strings that are not UTF-8, are MALFORMED_MESSAGE."""
    refusal = refused(server, channel, method, raw)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")


@pytest.mark.parametrize(
    "name", ["UPPER", "a b", "-a", ".a", "a/b", "x" * 65], ids=lambda name: name[:9]
)
@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_namespace_is_refused(
    server: ServerProcess, channel: grpc.Channel, method: str, name: str
) -> None:
    """A namespace of other characters or more than 64 bytes is FIELD_INVALID on every RPC."""
    raw = TEMPLATES[method].SerializeToString()
    refusal = refused(server, channel, method, raw, (("resultd-namespace", name),))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert refusal.facts == {"field": "resultd-namespace"}


S = state_pb2
CONTRADICTIONS = {
    "SUCCESS without value": task_pb2.TaskMeta(state=S.STATE_SUCCESS),
    "FAILURE without failure": task_pb2.TaskMeta(state=S.STATE_FAILURE),
    "FAILURE with value": task_pb2.TaskMeta(
        state=S.STATE_FAILURE,
        value=value_pb2.Payload(),
        failure=value_pb2.Failure(type="E"),
    ),
    "RETRY with value": task_pb2.TaskMeta(state=S.STATE_RETRY, value=value_pb2.Payload()),
    "REVOKED with value": task_pb2.TaskMeta(state=S.STATE_REVOKED, value=value_pb2.Payload()),
    "SUCCESS with failure": task_pb2.TaskMeta(
        state=S.STATE_SUCCESS,
        value=value_pb2.Payload(),
        failure=value_pb2.Failure(type="E"),
    ),
    "STARTED with failure": task_pb2.TaskMeta(
        state=S.STATE_STARTED, failure=value_pb2.Failure(type="E")
    ),
    "value without state": task_pb2.TaskMeta(value=value_pb2.Payload()),
    "nothing but an id": task_pb2.TaskMeta(),
    "CUSTOM without a name": task_pb2.TaskMeta(state=S.STATE_CUSTOM),
    "CUSTOM with a built-in name": task_pb2.TaskMeta(state=S.STATE_CUSTOM, custom_state="SUCCESS"),
    "CUSTOM of 65 bytes": task_pb2.TaskMeta(state=S.STATE_CUSTOM, custom_state="x" * 65),
    "CUSTOM with control characters": task_pb2.TaskMeta(state=S.STATE_CUSTOM, custom_state="A\nB"),
    "a name without CUSTOM": task_pb2.TaskMeta(state=S.STATE_STARTED, custom_state="MINE"),
    "an index without a group": task_pb2.TaskMeta(state=S.STATE_STARTED, index=1),
}


@pytest.mark.parametrize("name", ["CUSTOM", "UNSPECIFIED"])
def test_an_application_may_name_its_state_after_a_word_of_the_protocol(name: str) -> None:
    """Neither is a state anything else could mean."""
    meta = task_pb2.TaskMeta(task_id="t", state=S.STATE_CUSTOM, custom_state=name)
    validate.report(result_service_pb2.StoreResultRequest(meta=meta))


def _contradictory(name: str) -> result_service_pb2.StoreResultRequest:
    request = result_service_pb2.StoreResultRequest(meta=CONTRADICTIONS[name])
    request.meta.task_id = "t"
    return request


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_report_that_contradicts_itself_is_refused(
    server: ServerProcess, channel: grpc.Channel, name: str
) -> None:
    """A report whose state and contents do not go together is FIELD_INVALID."""
    raw = _contradictory(name).SerializeToString()
    refusal = refused(server, channel, "resultd.v1.ResultService.StoreResult", raw)
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert nothing_stored(channel)


def test_causes_beyond_16_are_refused(server: ServerProcess, channel: grpc.Channel) -> None:
    """A failure has at most 16 causes."""
    request = reports.failure("t")
    cause = request.meta.failure
    for _ in range(16):
        cause = cause.cause
        cause.type = "Cause"
    raw = request.SerializeToString()
    refusal = refused(server, channel, "resultd.v1.ResultService.StoreResult", raw)
    assert refusal.reason == "LIMIT_EXCEEDED"
    assert nothing_stored(channel)


def test_a_cause_is_named_by_its_place(server: ServerProcess, channel: grpc.Channel) -> None:
    """What a cause lacks is told of it, not of the failure that it is behind."""
    request = reports.failure("t")
    request.meta.failure.cause.type = "Cause"
    request.meta.failure.cause.cause.message = "what class?"
    raw = request.SerializeToString()
    refusal = refused(server, channel, "resultd.v1.ResultService.StoreResult", raw)
    assert refusal.facts["field"] == "meta.failure.cause.cause.type"


def test_in_a_batch_each_report_has_its_own_outcome(channel: grpc.Channel) -> None:
    """What refuses a report alone refuses it in a batch, by the same reason, and no other."""
    bad = [case for case in CASES if "ResultService.StoreResult " in case.name]
    small = [case for case in bad if len(case.request()) < 100_000]
    metadata: Metadata = (("resultd-namespace", "batch"),)
    request = result_service_pb2.BatchStoreResultsRequest()
    for number, case in enumerate(small):
        request.reports.append(reports.success(f"good-{number}"))
        request.reports.add().ParseFromString(case.request())
    stub = result_service_pb2_grpc.ResultServiceStub(channel)
    outcomes = stub.BatchStoreResults(request, metadata=metadata).outcomes
    assert len(outcomes) == len(request.reports)
    for case, good, refusal in zip(small, outcomes[::2], outcomes[1::2], strict=True):
        assert good.result.disposition == result_service_pb2.DISPOSITION_APPLIED
        assert not good.HasField("error")
        assert not refusal.HasField("result")
        assert error_pb2.ErrorReason.Name(refusal.error.reason) == (
            f"ERROR_REASON_{case.reason}"
        ), case.name
        assert refusal.error.code == grpc.StatusCode[DOCUMENTED[case.reason]].value[0]
        assert refusal.error.message.endswith(".")
    listed = stub.ListResults(
        result_service_pb2.ListResultsRequest(page_size=1_000), metadata=metadata
    )
    assert {meta.task_id for meta in listed.metas} == {f"good-{n}" for n in range(len(small))}


@pytest.mark.parametrize("task_id", ["x" * 255, "é" * 127 + "x", " ", "a/b:c", "\u2028"])
def test_an_id_of_255_bytes_is_taken(channel: grpc.Channel, task_id: str) -> None:
    """An id may be anything printable of up to 255 bytes, and comes back as it went."""
    stub = result_service_pb2_grpc.ResultServiceStub(channel)
    stub.StoreResult(reports.success(task_id))
    got = stub.GetResult(result_service_pb2.GetResultRequest(task_id=task_id))
    assert got.meta.task_id == task_id
    assert got.meta.existence == state_pb2.EXISTENCE_KNOWN


def test_10_000_ids_are_taken_and_repeats_collapsed(channel: grpc.Channel) -> None:
    """Up to 10,000 ids make one call, and an id named twice is answered once."""
    stub = result_service_pb2_grpc.ResultServiceStub(channel)
    ids = [f"t{n % 5_000}" for n in range(10_000)]
    got = stub.BatchGetResults(result_service_pb2.BatchGetResultsRequest(task_ids=ids))
    assert [meta.task_id for meta in got.metas] == ids[:5_000]
    assert not got.deferred_task_ids
    forgotten = stub.ForgetResults(result_service_pb2.ForgetResultsRequest(task_ids=ids))
    assert forgotten.forgotten == 0


def test_the_bounds_themselves_are_taken(channel: grpc.Channel) -> None:
    """What is exactly as long, as many or as large as a limit says is taken."""
    stub = result_service_pb2_grpc.ResultServiceStub(channel)
    request = reports.success("bounds")
    request.ttl.seconds = limits.TTL_MAX_MS // 1000
    request.meta.worker = "w" * limits.SHORT_TEXT_BYTES_MAX
    for number in range(limits.LABELS_MAX):
        request.meta.labels[f"{number:02}"] = "v" * 62
    used = request.meta.ByteSize()
    request.meta.value.data = b"x" * (limits.RECORD_BYTES_MAX - used - 1_000)
    assert stub.StoreResult(request).version == 1
    request.ClearField("ttl")
    request.no_expiry = True
    request.meta.task_id = "kept"
    assert stub.StoreResult(request).version == 1
    kept = stub.GetResult(result_service_pb2.GetResultRequest(task_id="kept")).meta
    assert not kept.HasField("expire_time")


def test_a_traceback_is_cut_and_says_so() -> None:
    """A traceback over 64 KiB keeps its beginning and its end, and names its length."""
    failure = value_pb2.Failure(type="E", traceback="BEGIN" + "é" * 50_000 + "END")
    validate.cut_traceback(failure)
    assert len(failure.traceback.encode()) <= limits.TRACEBACK_BYTES_MAX
    assert failure.traceback.startswith("BEGIN")
    assert failure.traceback.endswith("END")
    assert "cut by resultd: 100008 bytes in all" in failure.traceback


def test_a_traceback_of_64_kib_is_kept_whole() -> None:
    """A traceback that fits is not touched."""
    text = "x" * limits.TRACEBACK_BYTES_MAX
    failure = value_pb2.Failure(type="E", traceback=text)
    validate.cut_traceback(failure)
    assert failure.traceback == text
