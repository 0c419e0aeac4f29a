"""The tests mirror the source: who looks for the tests of a module finds them by its name.

pyclient/resultd/a/_b.py  ->  tests/client/a/test_b.py
server/resultd_server/c.py  ->  tests/server/test_c.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tooling.repository import GENERATED, ROOT

MIRRORS = {"pyclient/resultd": "tests/client", "server/resultd_server": "tests/server"}

# Modules whose tests stand under another name: where, and why.
ELSEWHERE: dict[str, tuple[str, str]] = {
    "pyclient/resultd/celery/_finishing.py": (
        "tests/client/celery/test_chords.py",
        "a chord is finished by whoever returns its last part: one law, two rooms",
    ),
}


def sources(package: str) -> list[Path]:
    """The modules of a package that people wrote and that do something."""
    return sorted(
        path
        for path in (ROOT / package).rglob("*.py")
        if GENERATED not in path.parents
        if path.name != "__main__.py"
        if path.name != "__init__.py" or has_logic(path)
    )


def has_logic(path: Path) -> bool:
    """Whether a package's own file does more than gather names."""
    return any(
        line.startswith(("def ", "class ", "async def ")) for line in path.read_text().splitlines()
    )


def mirror(source: Path, package: str) -> Path:
    """Where the tests of a module are looked for."""
    inside = source.relative_to(ROOT / package)
    return ROOT / MIRRORS[package] / inside.parent / f"test_{inside.stem.strip('_')}.py"


@pytest.mark.parametrize("package", MIRRORS)
def test_every_module_has_its_tests_where_its_name_leads(package: str) -> None:
    """Each source module has a test module of its name, or an entry that says where instead."""
    missing = [
        str(source.relative_to(ROOT / package))
        for source in sources(package)
        if str(source.relative_to(ROOT)) not in ELSEWHERE
        if not mirror(source, package).exists()
    ]
    assert missing == []


def test_the_exceptions_are_still_true() -> None:
    """An entry of the table names a module and tests that exist, and a module without its own."""
    for source, (tests, reason) in ELSEWHERE.items():
        assert (ROOT / source).exists(), f"{source} is gone: take it out"
        assert (ROOT / tests).exists(), f"{source}: {tests} does not exist"
        package = next(name for name in MIRRORS if source.startswith(name))
        assert not mirror(ROOT / source, package).exists(), f"{source} has its own tests now"
        assert reason
