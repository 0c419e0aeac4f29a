"""The server's numbers, as Prometheus reads them from a server that is used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from resultd.v1 import result_service_pb2 as pb
from resultd.v1 import worker_service_pb2 as worker_pb
from resultd_server import metrics
from resultd_server.access import reload
from resultd_server.engine.base import Swept
from tests.support import reports
from tests.support.access import AuthFile, put, utc
from tests.support.http import get_soon, samples, value
from tests.support.in_process import Served, serving, until
from tests.support.request_fields import METHODS
from tests.support.stores import SECOND_MS, Clock, Store

ADMIN: dict[str, Any] = {"admin": "127.0.0.1:0"}
STORE = "ResultService/StoreResult"
EXPIRES = "resultd_tls_certificate_expires_timestamp_seconds"
FOLLOWED = ("certificates", "auth file")


async def page(served: Served) -> str:
    """What is served now."""
    status, body = await get_soon(served.app.admin, "/metrics")
    assert status == 200
    return body


async def test_calls_are_counted_by_method_and_code() -> None:
    """Each call once, refusals by reason; methods that nobody serves have one name together."""
    async with serving(**ADMIN) as served:
        await served.results.StoreResult(reports.success("a"))
        with pytest.raises(grpc.aio.AioRpcError):
            await served.results.StoreResult(pb.StoreResultRequest())
        for name in ("/one/Thing", "/resultd.v1.ResultService/Another"):
            call: Any = served.channel.unary_unary(name)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"hello")
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        seen = await page(served)
    assert value(seen, "resultd_rpcs_total", method=STORE, code="OK") == 1
    assert value(seen, "resultd_rpcs_total", method=STORE, code="INVALID_ARGUMENT") == 1
    assert value(seen, "resultd_rpcs_total", method="unknown", code="UNIMPLEMENTED") == 2
    assert value(seen, "resultd_refusals_total", reason="FIELD_INVALID") == 1
    assert value(seen, "resultd_rpc_seconds_count", method=STORE) == 2
    called = samples(seen)["resultd_rpcs_total"]
    methods = {dict(labels)["method"] for labels, count in called.items() if count}
    assert methods == {STORE, "unknown"}


async def test_what_alarms_is_told_of_every_method_before_it_happens() -> None:
    """INTERNAL and DATA_LOSS stand at 0 for each RPC, so that the first one has a rate."""
    async with serving(**ADMIN) as served:
        called = samples(await page(served))["resultd_rpcs_total"]
    there = {(dict(labels)["method"], dict(labels)["code"]) for labels in called}
    methods = {"/".join(name.split(".")[-2:]) for name in METHODS}
    assert there == {(method, code) for method in methods for code in ("INTERNAL", "DATA_LOSS")}
    assert set(called.values()) == {0}


async def test_files_that_are_followed_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the certificate in force expires, and how often what lies there could not be used."""
    monkeypatch.setattr(reload, "PERIOD_S", 0.01)
    refused, expires = "resultd_reloads_refused_total", EXPIRES
    ca, ends = trustme.CA(), [utc(3_600).replace(microsecond=0), utc(7_200).replace(microsecond=0)]
    leaves = [ca.issue_cert("localhost", not_after=end) for end in ends]
    pair = put(leaves[0], tmp_path)
    settings: dict[str, Any] = {"tls_cert": pair.chain, "tls_key": pair.key, **ADMIN}
    async with serving(auth_file=AuthFile(tmp_path).path, **settings) as served:
        seen = await page(served)
        assert value(seen, expires) == ends[0].timestamp()
        assert [value(seen, refused, what=what) for what in FOLLOWED] == [0, 0]
        assert len(samples(seen)[refused]) == 2
        pair.chain.write_bytes(b"nothing of the kind")
        while value(seen, refused, what="certificates") < 3:
            seen = await page(served)
        assert value(seen, refused, what="auth file") == 0
        assert value(seen, expires) == ends[0].timestamp()
        put(leaves[1], tmp_path)
        while value(seen, expires) != ends[1].timestamp():
            seen = await page(served)
        count = value(seen, refused, what="certificates")
        assert value(await page(served), refused, what="certificates") == count


async def test_without_a_certificate_none_expires() -> None:
    """The series is not there: 0 would be 1970."""
    async with serving(**ADMIN) as served:
        assert EXPIRES not in samples(await page(served))


async def test_what_broke_in_the_background_is_counted() -> None:
    """By the task's name, each there from the start."""
    async with serving(**ADMIN) as served:
        served.app.background.broken["heap"] += 1
        broken = samples(await page(served))["resultd_background_breaks_total"]
    assert broken.pop((("task", "heap"),)) == 1
    assert (("task", "sweeper"),) in broken
    assert set(broken.values()) == {0}


async def test_waiting_is_seen_and_a_wake_is_timed(tmp_path: Path) -> None:
    """Open streams and what they wait for, by method; from commit to frame once for a wake."""
    async with serving(engine="lmdb", data=tmp_path, **ADMIN) as served:
        stream: Any = served.results.WaitFor(pb.WaitForRequest(task_ids=["a", "b", "c"]))
        await until(lambda: served.waiting() == (1, 1, 3))
        method = "ResultService/WaitFor"
        seen = await page(served)
        assert value(seen, "resultd_streams_open", method=method) == 1
        assert value(seen, "resultd_stream_waited_ids", method=method) == 3
        assert value(seen, "resultd_rpcs_in_progress", method=method) == 1
        assert value(seen, "resultd_wake_seconds_count") == 0
        await served.results.StoreResult(reports.success("a"))
        while not (await stream.read()).events:
            continue  # SYNCED
        seen = await page(served)
        assert value(seen, "resultd_wake_seconds_count") == 1
        assert 0 < value(seen, "resultd_wake_seconds_sum") < 20
        stream.cancel()


async def test_the_store_is_measured(tmp_path: Path) -> None:
    """Commits, what shared them, and room: live data within its limit, a file, a disk."""
    async with serving(engine="lmdb", data=tmp_path, **ADMIN) as served:
        await served.results.StoreResult(reports.success("a"))
        await served.workers.RevokeTasks(worker_pb.RevokeTasksRequest(task_ids=["b", "c"]))
        seen = await page(served)
    assert value(seen, "resultd_commit_seconds_count") == 2
    assert value(seen, "resultd_commit_operations_sum") == 2
    assert value(seen, "resultd_revocations_total") == 2
    assert 0 < value(seen, "resultd_store_live_bytes") < value(seen, "resultd_store_limit_bytes")
    assert value(seen, "resultd_store_file_bytes") > 0
    assert value(seen, "resultd_disk_free_bytes") > 0
    assert value(seen, "resultd_store_readers") <= value(seen, "resultd_store_readers_limit")
    assert value(seen, "resultd_ready") == 1


async def test_a_revocation_counts_however_often_it_comes() -> None:
    """As its help says: who asks in a loop, or for what has ended, is seen."""
    async with serving(**ADMIN) as served:
        await served.results.StoreResult(reports.success("ended"))
        for _ in range(2):
            await served.workers.RevokeTasks(
                worker_pb.RevokeTasksRequest(task_ids=["ended", "b", "c"])
            )
        seen = await page(served)
    assert value(seen, "resultd_revocations_total") == 6
    [told] = re.findall("^# HELP resultd_revocations_total (.*)$", seen, re.MULTILINE)
    assert told == (
        "Tasks named in calls to stop them: again each time, and those that had ended, too."
    )


async def test_what_the_sweeper_did_is_counted() -> None:
    """Expired records and steps."""
    async with serving(**ADMIN) as served:
        served.app.swept.count(Swept(steps=7, expired=3, expired_incomplete=1))
        seen = await page(served)
    assert value(seen, "resultd_expired_total") == 3
    assert value(seen, "resultd_sweep_steps_total") == 7


async def test_groups_that_expired_incomplete_are_counted() -> None:
    """As the engine counts them."""
    clock = Clock()
    async with serving(clock=clock, **ADMIN) as served:
        store = Store(served.app.engine, clock)
        await store.create("g", ttl_ms=SECOND_MS)
        clock.advance(SECOND_MS)
        await store.create("g")
        seen = await page(served)
    assert value(seen, "resultd_groups_expired_incomplete_total") == 1


async def test_lines_of_the_log_that_were_lost_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nobody can read it, it can still be seen here."""
    monkeypatch.setattr("resultd_server.logs.lost", lambda: 7)
    async with serving(**ADMIN) as served:
        assert value(await page(served), "resultd_log_lines_lost_total") == 7


async def test_the_pages_of_processes_become_one() -> None:
    """Every process keeps its own series; a name stands once; who gave nothing is down."""
    async with serving(**ADMIN) as served:
        await served.results.StoreResult(reports.success("a"))
        assert served.app.calls is not None
        pages: dict[int, bytes | None] = {
            worker: metrics.exposition(
                metrics.Observed(
                    served.app.engine, served.app.streams, served.app.calls,
                    served.app.swept, served.app.pressure, "1", worker,
                )
            )
            for worker in (0, 1)
        }  # fmt: skip
    merged = metrics.merged({**pages, 2: None}).decode()
    assert value(merged, "resultd_rpcs_total", method=STORE, code="OK") == 2
    ups = [line for line in merged.splitlines() if line.startswith("resultd_worker_up{")]
    assert [line[-3:] for line in ups] == ["1.0", "1.0", "0.0"]
    types = [line for line in merged.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))


async def test_without_an_admin_port_nothing_is_counted() -> None:
    """Handlers are not wrapped, wakes not timed: it costs nothing."""
    async with serving() as served:
        await served.results.StoreResult(reports.success("a"))
        assert served.app.calls is None
        assert served.app.streams.wake_seconds is None
        assert served.app.admin == ""
