"""The server's numbers in Prometheus' words: gathered when asked for, not before.

Every series carries `worker`, the number of the process it is from: what one process
counts never mixes with what another does, and a process that was started again resets its
own counters only. Labels are bounded: methods, codes and reasons of the protocol, never
names that a client chose.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import grpc
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from resultd_server import logs
from resultd_server.core.sweeper import Sweeps
from resultd_server.engine.base import Engine, EngineStats, Space
from resultd_server.interceptors.metrics import Calls
from resultd_server.pressure import Pressure
from resultd_server.service.streams import Streams
from resultd_server.tallies import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_METHOD = ("method",)


class Observed(NamedTuple):
    """Where the numbers of one process are."""

    engine: Engine
    streams: Streams
    calls: Calls
    sweeps: Sweeps
    pressure: Pressure
    version: str
    worker: int = 0
    ready: bool = False
    broken: Mapping[str, int] = MappingProxyType({})
    refused: Mapping[str, int] = MappingProxyType({})
    expires_s: float | None = None


def exposition(observed: Observed) -> bytes:
    """The numbers of one process, as Prometheus reads them."""
    families = [
        *_of_calls(observed.calls),
        *_of_streams(observed.streams, observed.engine),
        *_of_engine(observed.engine.stats()),
        *_of_sweeps(observed.sweeps),
        *_of_memory(observed.pressure),
        *_of_files(observed),
        *_of_process(observed),
        # Of this process alone: a registry of its own, not the library's global one.
        *ProcessCollector(registry=None).collect(),
    ]
    for family in families:
        _label(family, observed.worker)
    return _written(families)


def merged(pages: dict[int, bytes | None]) -> bytes:
    """The pages of several processes as one; None for a process that gave none."""
    families: dict[str, Metric] = {}
    for page in pages.values():
        for family in text_string_to_metric_families((page or b"").decode()):
            known = families.setdefault(family.name, family)
            if known is not family:
                known.samples += family.samples
    up = GaugeMetricFamily(
        "resultd_worker_up", "Whether this process gave its numbers.", labels=("worker",)
    )
    for worker, page in pages.items():
        up.add_metric((str(worker),), page is not None)
    return _written([*families.values(), up])


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        """What was given."""
        return self._families


def _written(families: Iterable[Metric]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return generate_latest(registry)


def _label(family: Metric, worker: int) -> None:
    family.samples = [
        sample._replace(labels={**sample.labels, "worker": str(worker)})
        for sample in family.samples
    ]


def _counter(name: str, what: str, number: float) -> Metric:
    return CounterMetricFamily(name, what, value=number)


def _gauge(name: str, what: str, number: float) -> Metric:
    return GaugeMetricFamily(name, what, value=number)


def _histogram(name: str, what: str, tally: Histogram) -> Metric:
    return HistogramMetricFamily(name, what, buckets=_buckets(tally), sum_value=tally.sum)


def _buckets(tally: Histogram) -> list[tuple[str, float]]:
    return [("+Inf" if bound == float("inf") else repr(float(bound)), count)
            for bound, count in tally.cumulative()]  # fmt: skip


def _short(method: str) -> str:
    """`resultd.v1.ResultService.GetResult` as `ResultService/GetResult`."""
    return "/".join(method.split(".")[-2:])


def _of_calls(calls: Calls) -> Iterator[Metric]:
    handled = CounterMetricFamily(
        "resultd_rpcs_total", "Calls that are over, by status code.", labels=("method", "code")
    )
    for (method, code), count in calls.handled.items():
        handled.add_metric((_short(method), code), count)
    yield handled
    running = GaugeMetricFamily("resultd_rpcs_in_progress", "Calls under way.", labels=_METHOD)
    for method, count in calls.in_progress.items():
        running.add_metric((_short(method),), count)
    yield running
    refused = CounterMetricFamily(
        "resultd_refusals_total", "Calls refused, by the reason in ErrorInfo.", labels=("reason",)
    )
    for reason, count in calls.refused.items():
        refused.add_metric((reason,), count)
    yield refused
    seconds = HistogramMetricFamily(
        "resultd_rpc_seconds", "How long unary calls took.", labels=_METHOD
    )
    for method, tally in calls.seconds.items():
        if tally.count:
            seconds.add_metric((_short(method),), _buckets(tally), tally.sum)
    yield seconds


def _of_streams(streams: Streams, engine: Engine) -> Iterator[Metric]:
    count: Counter[str] = Counter()
    waited: Counter[str] = Counter()
    for method, ids in streams.under_way():
        count[method] += 1
        waited[method] += ids
    open_streams = GaugeMetricFamily("resultd_streams_open", "Streams open.", labels=_METHOD)
    waiters = GaugeMetricFamily(
        "resultd_stream_waited_ids", "Ids that open streams wait for.", labels=_METHOD
    )
    for method in count:
        open_streams.add_metric((_short(method),), count[method])
        waiters.add_metric((_short(method),), waited[method])
    yield open_streams
    yield waiters
    yield _counter(
        "resultd_streams_stalled_total", "Streams dropped because nobody read.", streams.stalled
    )
    if streams.wake_seconds is not None:
        yield _histogram(
            "resultd_wake_seconds",
            "From a commit to the frame that tells a waiter of it.",
            streams.wake_seconds,
        )
    yield _counter(
        "resultd_hints_lost_total",
        "Times that hints were lost and every waiter read everything again.",
        engine.hub.lost,
    )


def _of_engine(stats: EngineStats) -> Iterator[Metric]:
    yield _histogram("resultd_commit_seconds", "How long commits took.", stats.commit_seconds)
    yield _histogram(
        "resultd_commit_operations", "Writes that shared a commit.", stats.commit_operations
    )
    yield _gauge("resultd_writes_queued", "Writes not yet committed.", stats.writes_queued)
    yield _gauge("resultd_writes_queued_bytes", "What they carry.", stats.writes_queued_bytes)
    yield _gauge(
        "resultd_writer_busy_seconds", "How long the commit under way has taken.", stats.writing_s
    )
    yield _counter(
        "resultd_revocations_total",
        "Tasks named in calls to stop them: again each time, and those that had ended, too.",
        stats.revocations,
    )
    yield _counter(
        "resultd_groups_expired_incomplete_total",
        "Groups that expired before they were complete.",
        stats.groups_incomplete,
    )
    yield from _of_usage(stats)
    if stats.space is not None:
        yield from _of_space(stats.space)


def _of_usage(stats: EngineStats) -> Iterator[Metric]:
    """Of all namespaces together, and of the fullest: whose it is the server tells nobody."""
    refused = CounterMetricFamily(
        "resultd_quota_refusals_total",
        "Reports and group calls refused by a quota, those of a batch one by one.",
        labels=("quota",),
    )
    share = GaugeMetricFamily(
        "resultd_quota_used_ratio_max",
        "How much of its quota the namespace holds that holds most, 1: all.",
        labels=("quota",),
    )
    held, allowed = stats.held, stats.allowance
    for quota, limit in (("records", allowed.records_max), ("bytes", allowed.bytes_max)):
        if limit is not None:
            refused.add_metric((quota,), allowed.refused[quota])
            if held is not None:
                most = held.records_max if quota == "records" else held.bytes_max
                share.add_metric((quota,), most / limit)
    yield refused
    yield share
    if held is not None:
        yield _gauge("resultd_namespaces", "Namespaces ever written in.", held.namespaces)
        yield _gauge("resultd_records", "Records of tasks stored.", held.records)
        yield _gauge(
            "resultd_records_bytes",
            "What namespaces hold, as quotas count it.",
            held.size_bytes,
        )


def _of_space(space: Space) -> Iterator[Metric]:
    yield _gauge("resultd_store_live_bytes", "Live data.", space.live_bytes)
    yield _gauge("resultd_store_limit_bytes", "Live data allowed.", space.limit_bytes)
    yield _gauge("resultd_store_file_bytes", "Disk the store's file takes.", space.file_bytes)
    yield _gauge("resultd_disk_free_bytes", "Free on the store's disk.", space.disk_free_bytes)
    yield _gauge("resultd_store_readers", "Reader slots taken.", space.readers)
    yield _gauge("resultd_store_readers_limit", "Reader slots there are.", space.readers_limit)
    yield _gauge(
        "resultd_store_oldest_reader_transactions",
        "Commits since the oldest read began: their free pages are pinned.",
        space.oldest_reader_transactions,
    )


def _of_sweeps(sweeps: Sweeps) -> Iterator[Metric]:
    yield _counter("resultd_expired_total", "Records and groups expired.", sweeps.expired)
    yield _counter("resultd_sweep_steps_total", "Steps the sweeper took.", sweeps.steps)
    yield _counter("resultd_sweeps_refused_total", "Sweeps the store refused.", sweeps.refused)


def _of_memory(pressure: Pressure) -> Iterator[Metric]:
    held_bytes = pressure.held_bytes()
    if held_bytes is not None:
        yield _gauge("resultd_memory_held_bytes", "Memory that no file stands behind.", held_bytes)
        yield _gauge("resultd_memory_limit_bytes", "What it may be.", pressure.most_bytes)
        yield _counter(
            "resultd_memory_calls_ended_total",
            "Calls ended with their requests on the way, because memory was short.",
            pressure.ended,
        )
        yield _counter(
            "resultd_memory_connections_closed_total",
            "Connections closed because memory was short.",
            pressure.closed,
        )


def _of_files(observed: Observed) -> Iterator[Metric]:
    refused = CounterMetricFamily(
        "resultd_reloads_refused_total",
        "Looks, one a second, that found files that cannot be used; the old ones stay.",
        labels=("what",),
    )
    for what, count in observed.refused.items():
        refused.add_metric((what,), count)
    yield refused
    expires = "resultd_tls_certificate_expires_timestamp_seconds"
    said = "When the server's certificate expires, in seconds since 1970."
    yield GaugeMetricFamily(expires, said, value=observed.expires_s)


def _of_process(observed: Observed) -> Iterator[Metric]:
    build = GaugeMetricFamily(
        "resultd_build_info", "What runs.", labels=("version", "engine", "python", "grpc")
    )
    build.add_metric(
        (observed.version, observed.engine.name, platform.python_version(), grpc.__version__), 1
    )
    yield build
    yield _counter(
        "resultd_log_lines_lost_total", "Log lines that could not be written.", logs.lost()
    )
    yield _gauge("resultd_ready", "Whether calls are taken.", observed.ready)
    broken = CounterMetricFamily(
        "resultd_background_breaks_total",
        "Errors that ended what runs in the background; it is begun again.",
        labels=("task",),
    )
    for task, count in observed.broken.items():
        broken.add_metric((task,), count)
    yield broken
