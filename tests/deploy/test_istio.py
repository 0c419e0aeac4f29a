"""Istio's route lets streams live and leaves retries to the clients; YAML is well written."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import yaml

from resultd_server import limits
from tests.deploy.chart import DEPLOY

ISTIO = DEPLOY / "istio" / "istio.yaml"
YAML_FILES = ("istio/*.yaml", "helm/resultd/*.yaml", "helm/resultd/files/*.yaml")


def test_istio_lets_a_stream_live() -> None:
    """No timeout, no retries, as many requests as the server takes streams."""
    objects: dict[str, Any] = {
        each["kind"]: each["spec"] for each in yaml.safe_load_all(ISTIO.read_text())
    }
    (route,) = objects["VirtualService"]["http"]
    assert (route["timeout"], route["retries"]) == ("0s", {"attempts": 0})
    pool = objects["DestinationRule"]["trafficPolicy"]["connectionPool"]["http"]
    assert pool["http2MaxRequests"] >= limits.STREAMS_MAX


def test_yaml_is_written_as_yamllint_wants_it() -> None:
    """No key twice, no truth by accident."""
    pytest.importorskip("yamllint", reason="deploy/requirements-lint.txt is not installed")
    files = [path for pattern in YAML_FILES for path in sorted(DEPLOY.glob(pattern))]
    done = subprocess.run(
        [sys.executable, "-m", "yamllint", "--strict", "-c", DEPLOY / ".yamllint.yaml", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
