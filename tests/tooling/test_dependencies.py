"""What the packages import is what pyproject.toml asks pip to install."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.tooling.repository import GENERATED, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

# The import name, where it is not the distribution's.
DISTRIBUTIONS = {
    "grpc": "grpcio",
    "grpc_channelz": "grpcio-channelz",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "grpc_status": "grpcio-status",
    "google": "protobuf",
    "jwt": "PyJWT",
    "kombu": "celery",  # brings it, and its releases go together
    "vine": "celery",
    "prometheus_client": "prometheus-client",
}
OURS = {"resultd", "resultd_server"}


def declared(*extras: str) -> set[str]:
    """The distributions a user has after installing resultd with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    return {re.split(r"[\[>=<;~! ]", requirement)[0] for requirement in requirements}


def imported_names(node: ast.AST) -> set[str]:
    """The top-level packages an import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").partition(".")[0]}
    return set()


def needed(module: Path) -> set[str]:
    """The distributions a module cannot be imported without."""
    statements = ast.parse(module.read_text()).body  # what is conditional is optional
    names = {name for node in statements for name in imported_names(node)}
    foreign = names - OURS - set(sys.stdlib_module_names)
    return {DISTRIBUTIONS.get(name, name) for name in foreign}


def modules(package: str) -> list[Path]:
    """The modules of a package that people wrote."""
    found = (ROOT / package).rglob("*.py")
    return sorted(path for path in found if GENERATED not in path.parents)


def extras_of(module: Path) -> list[str]:
    """The extras a module of the client may count on."""
    inside = module.relative_to(ROOT / "pyclient" / "resultd")
    return [extra for extra in ("cli", "celery") if inside.parts[0] in (extra, f"{extra}.py")]


def test_the_client_needs_nothing_but_what_a_bare_install_brings() -> None:
    """Every module imports after `pip install .`, but for those named after their extra."""
    missing = {
        f"{module.relative_to(ROOT)}: {name}"
        for module in modules("pyclient/resultd")
        for name in needed(module) - declared(*extras_of(module))
    }
    assert missing == set()


def test_the_server_needs_nothing_but_its_extra() -> None:
    """Every module imports after `pip install '.[server]'`, but for those named after an extra."""
    missing = {
        f"{module.relative_to(ROOT)}: {name}"
        for module in modules("server/resultd_server")
        for name in needed(module)
        - declared("server", "cli", *(["channelz"] if module.stem == "channelz" else []))
    }
    assert missing == set()


def test_nothing_is_asked_for_that_nobody_imports() -> None:
    """Every distribution a user installs is imported somewhere."""
    every = [*modules("pyclient/resultd"), *modules("server/resultd_server")]
    imported = {
        DISTRIBUTIONS.get(name, name)
        for module in every
        for node in ast.walk(ast.parse(module.read_text()))
        for name in imported_names(node)
    }
    assert declared("server", "cli") - {"resultd"} - imported == set()
