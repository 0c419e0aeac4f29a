"""Objects of other projects' kinds are what those projects take: Prometheus' operator, Istio.

Held against the types and schemas that were made from their definitions: types, for a field that
nobody knows is an error there; schemas, for how durations and the like are written.
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import ALL, DEPLOY, rendered

HERE = Path(__file__).parent / "kinds"
MODELS = {
    "ServiceMonitor": "prometheus-operator/monitoring.coreos.com/v1",
    "PrometheusRule": "prometheus-operator/monitoring.coreos.com/v1",
    "VirtualService": "istio/networking.istio.io/v1beta1",
    "DestinationRule": "istio/networking.istio.io/v1beta1",
}
"""Where each kind's model is. Istio's v1 is its v1beta1 under another name."""

TSC = ["--noEmitOnError", "--strict", "--skipLibCheck", "--module", "nodenext", "objects.mts"]

Object = dict[str, Any]


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """What package.json names."""
    found = HERE / "node_modules"
    if not shutil.which("node"):
        pytest.skip("there is no node")
    if not (found / "typescript").is_dir():
        pytest.skip(f"its packages are not there: npm install --prefix {HERE}")
    return found


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    """As they are deployed but for Istio's version."""
    of_istio = yaml.safe_load_all((DEPLOY / "istio" / "istio.yaml").read_text())
    return [each for (kind, _), each in rendered(ALL).items() if kind in MODELS] + [
        {**each, "apiVersion": "networking.istio.io/v1beta1"} for each in of_istio
    ]


def complaints(directory: Path, node_modules: Path, objects: list[Object]) -> str:
    """What is wrong with objects, nothing if they are right."""
    (directory / "node_modules").symlink_to(node_modules)
    lines = ["const wrong: unknown[] = [];"]
    for number, each in enumerate(objects):
        kind = each["kind"]
        lines += [
            f'import {{ {kind} as Model{number} }} from "@kubernetes-models/{MODELS[kind]}";',
            f'import type {{ I{kind} as Type{number} }} from "@kubernetes-models/{MODELS[kind]}";',
            f"const object{number}: Type{number} = {json.dumps(each)};",
            f"try {{ new Model{number}(object{number}).validate(); }}",
            "catch (error) { wrong.push(error); }",
        ]
    (directory / "objects.mts").write_text("\n".join([*lines, "console.log(...wrong);"]))
    typescript = node_modules / "typescript"
    said = ""
    for command in (["node", str(typescript / "bin" / "tsc"), *TSC], ["node", "objects.mjs"]):
        ran = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        said += ran.stdout.strip() + ran.stderr.strip()
        if ran.returncode:
            return said or f"{command[1]} ended with {ran.returncode}"
    return said


def test_every_object_is_of_its_kind(
    tmp_path: Path, node_modules: Path, objects: list[Object]
) -> None:
    """No field is unknown, none that must be is missing, and each is written as it should be."""
    assert {each["kind"] for each in objects} == MODELS.keys()
    assert complaints(tmp_path, node_modules, objects) == ""


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        ("ServiceMonitor", ("spec", "endpoints", 0, "intervall"), "30s", "'\"intervall\"'"),
        ("ServiceMonitor", ("spec", "endpoints", 0, "interval"), "30 s", "interval must match"),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0, "expr"), None, "'null'"),
        ("VirtualService", ("spec", "http", 0, "timeouts"), "0s", "'\"timeouts\"'"),
        ("DestinationRule", ("spec", "trafficPolicy", "outlierDetection"), 3, "maxEjectionPercent"),
    ],
)
def test_what_is_wrong_is_found(
    tmp_path: Path,
    node_modules: Path,
    objects: list[Object],
    kind: str,
    path: tuple[str | int, ...],
    value: object,
    said: str,
) -> None:
    """A field of another name, one that is missing, a duration that is none."""
    [right] = [each for each in objects if each["kind"] == kind]
    wrong = copy.deepcopy(right)
    place: Any = wrong
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert said in complaints(tmp_path, node_modules, [wrong])
