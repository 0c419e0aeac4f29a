"""What a refusal says: its status, taken apart."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

from resultd.v1 import error_pb2
from tests.tooling.repository import ROOT

DETAILS_KEY = "grpc-status-details-bin"


class Refusal(NamedTuple):
    """Code, reason, sentence, facts; the delay in RetryInfo, 0 where there is none."""

    code: str
    domain: str
    reason: str
    sentence: str
    facts: dict[str, str]
    retry_delay_s: float


def taken_apart(error: grpc.RpcError) -> Refusal:
    """The refusal a call ended with."""
    pairs: Any = error.trailing_metadata() or ()  # of two kinds, sync and asyncio
    trailing = dict(pairs)
    status = status_pb2.Status.FromString(trailing.get(DETAILS_KEY, b""))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(retry)
    code = error.code()
    assert status.code in (code.value[0], 0)
    assert status.message in (error.details(), "")
    return Refusal(
        code.name,
        info.domain,
        info.reason,
        error.details() or "",
        dict(info.metadata),
        retry.retry_delay.ToTimedelta().total_seconds(),
    )


def documented_codes() -> dict[str, str]:
    """The status code of every reason, as the protocol's comments say."""
    codes, code = {}, ""
    for line in (ROOT / "protos/resultd/v1/error.proto").read_text().splitlines():
        if said := re.match(r"\s+// ([A-Z_]+): ", line):
            code = said[1]
        elif (reason := re.match(r"\s+ERROR_REASON_(\w+) = [1-9]", line)) is not None:
            codes[reason[1]] = code
    reasons = {name.removeprefix("ERROR_REASON_") for name in error_pb2.ErrorReason.keys()}
    assert set(codes) == reasons - {"UNSPECIFIED"}
    return codes
