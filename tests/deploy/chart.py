"""The chart, rendered; skips where nothing can render it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tooling.repository import ROOT

DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "resultd"
SECURE = {"tls": {"secretName": "tls", "clientCa": True}, "auth": {"secretName": "tokens"}}
ALL: dict[str, Any] = {
    **SECURE,
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
    "backup": {"enabled": True},
}

Objects = dict[tuple[str, str], dict[str, Any]]


class RefusedError(Exception):
    """The chart says no, with its sentence."""


def rendered(values: dict[str, Any]) -> Objects:
    """The objects by kind and name, of a release called resultd."""
    texts = _by_helm(values) if shutil.which("helm") else _by_library(values)
    objects = [each for text in texts for each in yaml.safe_load_all(text) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in objects}


def _by_library(values: dict[str, Any]) -> list[str]:
    helm = pytest.importorskip(
        "helm_python", reason="neither helm nor what deploy/requirements-lint.txt brings"
    )
    with helm.Chart.load(str(CHART)) as chart:
        try:
            files = chart.render(values=values, name="resultd")
        except helm.HelmError as error:
            raise RefusedError(str(error)) from None
    return [text for name, text in files.items() if name.endswith(".yaml")]


def _by_helm(values: dict[str, Any]) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "values.yaml"
        path.write_text(yaml.safe_dump(values))
        done = subprocess.run(
            ["helm", "template", "resultd", str(CHART), "--values", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RefusedError(done.stderr)
    return [done.stdout]
