"""The import rules of pyproject.toml bite: each forbidden import is refused by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tooling.repository import ROOT

pytest.importorskip("importlinter", reason="import-linter is in the [dev] extra")

FORBIDDEN = [
    (
        "pyclient/resultd/client.py",
        "import resultd_server.errors",
        "client does not know the server",
    ),
    (
        "pyclient/resultd/client.py",
        "import lmdb",
        "Only resultd_server.engine.environment imports lmdb",
    ),
    ("pyclient/resultd/client.py", "import celery", "Only resultd.celery imports celery"),
    (
        "server/resultd_server/core/x.py",
        "import lmdb",
        "Only resultd_server.engine.environment imports lmdb",
    ),
    ("server/resultd_server/core/x.py", "import grpc", "know nothing of the network"),
    ("server/resultd_server/access/x.py", "import grpc", "know nothing of the network"),
    ("server/resultd_server/tls.py", "import jwt", "access.jwts imports jwt"),
    ("server/resultd_server/service/x.py", "import resultd.states", "only the protocol"),
    ("server/resultd_server/engine/x.py", "import resultd_server.core", "arrows go down"),
    ("server/resultd_server/interceptors/x.py", "import resultd_server.service", "arrows go down"),
    ("server/resultd_server/service/x.py", "from pickle import loads", "no unpickling"),
    ("server/resultd_server/engine/x.py", "import marshal", "no unpickling"),
    ("server/resultd_server/x.py", "import shelve", "no unpickling"),
    ("server/resultd_server/core/x.py", "def f():\n    import dill", "no unpickling"),
]


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Holds the packages below `root` against our rules."""
    environment = os.environ | {"PYTHONPATH": f"{root / 'pyclient'}:{root / 'server'}"}
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The two packages and the rules, to be spoilt."""
    for package in ("pyclient", "server"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("module", "line", "rule"), FORBIDDEN)
def test_a_forbidden_import_breaks_its_rule(copy: Path, module: str, line: str, rule: str) -> None:
    """One line in the wrong place fails `make imports`, and the rule that says why is named."""
    with (copy / module).open("a") as spoilt:
        spoilt.write(f"\n{line}\n")
    result = lint(copy)
    assert result.returncode == 1, result.stdout
    broken = [report for report in result.stdout.splitlines() if " BROKEN" in report]
    assert any(rule in report for report in broken), result.stdout
