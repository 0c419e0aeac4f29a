"""docs/security.md says what is so."""

from __future__ import annotations

import re
from pathlib import Path

from resultd_server.access.authority import Authority
from resultd_server.access.roles import NEEDED, Role
from resultd_server.config import Settings
from tests.support.jwts import Issuer
from tests.support.refusals import documented_codes
from tests.tooling.repository import ROOT

PAGE = (ROOT / "docs/security.md").read_text()


def rows(header: str) -> list[list[str]]:
    """The cells of the table that begins with a header."""
    table = PAGE[PAGE.index(f"| {header} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def test_the_roles_are_those_of_the_table() -> None:
    """Each RPC stands behind the least role it needs."""
    said = {
        name: Role[role.upper()]
        for role, methods in rows("role")
        for name in re.findall(r"[A-Z]\w+", methods)
    }
    assert said == {method.rpartition(".")[2]: role for method, role in NEEDED.items()}


def test_the_reasons_are_those_of_the_protocol() -> None:
    """Each with its status code."""
    code, documented = "", documented_codes()
    for said, reason, _ in rows("refusal"):
        code = said or code
        assert documented[reason] == code


def test_the_auth_file_shown_is_one(tmp_path: Path) -> None:
    """It is taken as it stands."""
    (block,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "auth.toml").write_text(block)
    Issuer("ES256").write(tmp_path / "issuer.pem")
    known = Authority(tmp_path / "auth.toml")
    known.take(known.read())


def test_the_settings_named_are_there() -> None:
    """Every flag of `resultd serve` that the page names."""
    of_others = {"--help", "--role", "--namespace", "--url", "--workers", "--recount"}
    flags = set(re.findall(r"--[a-z][a-z-]+", PAGE)) - of_others
    assert flags <= {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    assert "--auth-file" in flags


def test_the_tests_named_are_there() -> None:
    """A statement names the test that holds it."""
    named = re.findall(r"`(tests/[\w/]+\.py)`", PAGE)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
