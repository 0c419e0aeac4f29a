"""Quotas of records and bytes over real sockets: what is refused, who goes on, how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

import resultd
import resultd.aio
from resultd.errors import QuotaExceededError
from resultd.testing import Server
from resultd.v1 import error_pb2, group_pb2, group_service_pb2
from resultd.v1 import result_service_pb2 as pb
from resultd_server.engine import audit
from tests.support import http, reports
from tests.support.in_process import serving, until
from tests.support.refusals import Refusal, taken_apart

OTHER = (("resultd-namespace", "other"),)


async def refusal_of(call: Awaitable[Any]) -> Refusal:
    """Why a call was refused; it says when to try again, and what would help."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    refusal = taken_apart(caught.value)
    assert (refusal.code, refusal.domain, refusal.reason) == (
        *("RESOURCE_EXHAUSTED", "resultd", "QUOTA"),
    )
    assert "forget results, give them a shorter time to live" in refusal.sentence
    assert refusal.retry_delay_s > 0
    return refusal


async def test_one_record_too_many() -> None:
    """Refused alone and in a batch, where the others go on; another tenant has room of his own."""
    async with serving(records_per_namespace=3) as served:
        results = served.results
        await results.StoreResult(reports.success("a"))
        batch = reports.batch([reports.success(id_) for id_ in "bcda"])
        outcomes = (await results.BatchStoreResults(batch)).outcomes
        assert [each.error.reason for each in outcomes] == [
            *(0, 0, error_pb2.ERROR_REASON_QUOTA, 0)
        ]
        assert outcomes[2].error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        refusal = await refusal_of(results.StoreResult(reports.success("d")))
        assert refusal.facts == {
            "namespace": "default",
            "quota": "records",
            "held": "3",
            "limit": "3",
        }
        await results.StoreResult(reports.success("d"), metadata=OTHER)
        await results.ForgetResults(pb.ForgetResultsRequest(task_ids=["a"]))
        await results.StoreResult(reports.success("d"))


async def test_one_byte_too_many() -> None:
    """For reports, groups and members; what asks for the quotas is told them."""
    async with serving(bytes_per_namespace=2_000) as served:
        said = await served.results.GetServerInfo(pb.GetServerInfoRequest())
        assert said.limits["bytes_per_namespace"] == 2_000
        assert "records_per_namespace" not in said.limits
        await served.groups.CreateGroup(group_service_pb2.CreateGroupRequest(group_id="g"))
        await refusal_of(served.results.StoreResult(reports.success("a", b"x" * 2_000)))
        await served.results.StoreResult(reports.success("a", b"x" * 1_500))
        members = [group_pb2.GroupMember(id=f"m{number}") for number in range(10)]
        for call in (
            served.groups.CreateGroup(
                group_service_pb2.CreateGroupRequest(group_id="h", members=members)
            ),
            served.groups.AddGroupMembers(
                group_service_pb2.AddGroupMembersRequest(group_id="g", members=members)
            ),
        ):
            assert (await refusal_of(call)).facts["quota"] == "bytes"
        await served.results.StoreResult(reports.success("a", b"x" * 1_500))


async def test_a_client_goes_on_when_there_is_room() -> None:
    """Its report waits with it, tried again, until something is forgotten."""
    async with (
        serving(records_per_namespace=1, admin="127.0.0.1:0") as served,
        resultd.aio.Client(f"resultd://{served.address}") as client,
    ):
        await client.store_result("a", 1)
        late = asyncio.create_task(client.store_result("b", 2))
        refused = served.app.engine.stats().allowance.refused
        await until(lambda: refused["records"] == 1)
        page = (await http.get_soon(served.app.admin, "/metrics"))[1]
        assert http.value(page, "resultd_quota_used_ratio_max", quota="records") == 1
        assert http.value(page, "resultd_quota_refusals_total", quota="records") >= 1
        assert http.value(page, "resultd_records") == 1
        assert not late.done()
        await client.forget("a")
        await late
        assert await client.AsyncResult("b").get(timeout=10) == 2


def test_workers_share_the_quota(tmp_path: Path) -> None:
    """Two processes, many connections: as many as the quota are taken, to the record."""
    flags = ("--workers", "2", "--records-per-namespace", "25", "--bytes-per-namespace", "1MiB")
    with Server(tmp_path, arguments=flags) as server, ExitStack() as stack:
        clients = [stack.enter_context(resultd.Client(server.url)) for _ in range(8)]

        def store(number: int) -> int:
            pair = [(f"t{number}.{part}", part) for part in range(2)]
            outcomes = clients[number % 8].store_results(pair)
            refused = [each.error for each in outcomes if each.error is not None]
            assert {type(error) for error in refused} <= {QuotaExceededError}
            return len(pair) - len(refused)

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(store, range(24))) == 25
    assert audit.verify(tmp_path, 0).damages == []
