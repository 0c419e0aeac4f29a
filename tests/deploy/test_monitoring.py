"""Alerts and dashboard ask for what the server tells, and the documentation explains them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.deploy.chart import CHART, rendered
from tests.support import reports
from tests.support.access import AuthFile, with_token
from tests.support.http import get_soon
from tests.support.in_process import serving
from tests.tooling.repository import ROOT

ALERTS = CHART / "files" / "alerts.yaml"
ALERTS_TEST = ROOT / "tests" / "deploy" / "alerts_test.yaml"
DASHBOARD = CHART / "files" / "dashboard.json"
OPERATING = ROOT / "docs" / "operating.md"
OF_SCRAPER = {"up"}
OF_SUPERVISOR = {"resultd_worker_up"}
"""What several workers tell together, and one does not."""


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels that show something."""
    return [
        panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"
    ]


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of everything that is asked for."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


class Told(NamedTuple):
    """What a server tells: series and their labels."""

    names: set[str]
    labels: dict[str, set[str]]


async def told(tmp_path: Path) -> Told:
    """Of a server that was used a little."""
    quotas: dict[str, Any] = {"records_per_namespace": 10, "bytes_per_namespace": 10_000}
    file = AuthFile(tmp_path)
    token = with_token(file.add("a", everywhere="worker"))
    settings: dict[str, Any] = {
        "data": tmp_path / "data",
        "auth_file": file.path,
        "admin": "127.0.0.1:0",
    }
    async with serving(engine="lmdb", **settings, **quotas) as served:
        await served.results.StoreResult(reports.success("a"), metadata=token)
        _, page = await get_soon(served.app.admin, "/metrics")
    names: set[str] = set()
    for name, kind in re.findall(r"(?m)^# TYPE (\w+) (\w+)$", page):
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names |= {name + suffix for suffix in suffixes}
    labels: dict[str, set[str]] = {}
    for name, said in re.findall(r"(?m)^(\w+)\{(.*)\} ", page):
        labels.setdefault(name, set()).update(re.findall(r"(\w+)=\"", said))
    return Told(names, labels)


def asked(expression: str) -> set[str]:
    """The series an expression names."""
    return set(re.findall(r"\b(?:resultd|process)_\w+|\bup\b", expression))


async def test_what_is_asked_for_is_told(tmp_path: Path) -> None:
    """Every series in an alert or a panel is one that /metrics serves."""
    names = (await told(tmp_path)).names | OF_SCRAPER | OF_SUPERVISOR
    for where, expression in expressions():
        assert asked(expression), where
        assert asked(expression) <= names, where


async def test_what_is_told_is_shown_or_asked_for(tmp_path: Path) -> None:
    """No number of ours is counted for nobody."""
    names = {name for name in (await told(tmp_path)).names if name.startswith("resultd_")}
    used = set().union(*(asked(expression) for _, expression in expressions()))
    idle = {re.sub("_(bucket|sum|count)$", "", name) for name in names - used}
    assert idle - {re.sub("_(bucket|sum|count)$", "", name) for name in used} == set()


async def test_labels_in_selectors_are_labels_there_are(tmp_path: Path) -> None:
    """Nobody selects or groups by what no series carries; the scraper adds two."""
    labels = (await told(tmp_path)).labels
    added = {"job", "instance", "le"}
    known = added.union(*labels.values(), {"reason"})  # a refusal has one, and none happened
    for where, expression in expressions():
        said = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"", expression))
        for grouped in re.findall(r"\bby\s*\(([^)]*)\)", expression):
            said |= {name.strip() for name in grouped.split(",")}
        assert said <= known, where


def test_every_expression_is_promql() -> None:
    """A parser takes each; Grafana's own variables stand for what it puts there."""
    parser = pytest.importorskip(
        "promql_parser", reason="deploy/requirements-lint.txt is not installed"
    )
    for _, expression in expressions():
        parser.parse(expression.replace("$__rate_interval", "5m"))


def test_promtool_takes_the_rules() -> None:
    """Prometheus' own checker finds nothing, where it is installed."""
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on this machine")
    done = subprocess.run(
        ["promtool", "check", "rules", ALERTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_alerts_fire_when_they_should() -> None:
    """Prometheus' own rules test: series as the server tells them, and what comes of them."""
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on this machine")
    done = subprocess.run(
        ["promtool", "test", "rules", ALERTS_TEST], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


def test_every_alert_is_explained() -> None:
    """What it means and what to do stands under its name in docs/operating.md."""
    explained = set(re.findall(r"\| `(Resultd\w+)` \|", OPERATING.read_text()))
    assert {rule["alert"] for rule in rules()} == explained
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]


def test_the_chart_installs_these_very_rules_and_this_dashboard() -> None:
    """There is one of each; Kubernetes gets them unchanged."""
    on = {"enabled": True}
    objects = rendered({"insecure": True, "prometheusRule": on, "dashboard": on})
    spec = objects["PrometheusRule", "resultd"]["spec"]
    assert spec["groups"][0]["rules"] == rules()
    data = objects["ConfigMap", "resultd-dashboard"]["data"]["resultd.json"]
    assert json.loads(data) == json.loads(DASHBOARD.read_text())


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    """Each has its number and its place."""
    every = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in every}
    assert len(places) == len(every)
