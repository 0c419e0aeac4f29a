"""Laws about the README and the pages it leads to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tooling.repository import ROOT, tracked_files

LINES_MAX = 150
README = ROOT / "README.md"
MAKE_TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)
MAKE_COMMAND = re.compile(r"\bmake ([a-z-]+)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def pages() -> list[Path]:
    """Every tracked page of prose."""
    return [path for path in tracked_files() if path.suffix == ".md"]


def test_the_readme_can_be_read_in_one_sitting() -> None:
    """The README has at most 150 lines."""
    assert len(README.read_text().splitlines()) <= LINES_MAX


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_readme_opens_with_the_two_commands(target: str) -> None:
    """What it is and the two commands stand in its first 15 lines."""
    assert f"make {target}" in "\n".join(README.read_text().splitlines()[:15])


def test_every_make_command_in_the_prose_exists() -> None:
    """A page never names a target that the Makefile lacks."""
    targets = set(MAKE_TARGET.findall((ROOT / "Makefile").read_text()))
    blocks = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
    missing = {
        f"{page.relative_to(ROOT)}: make {target}"
        for page in pages()
        for code in blocks.findall(page.read_text())
        for target in MAKE_COMMAND.findall(code)
        if target not in targets
    }
    assert missing == set()


def test_every_link_between_pages_leads_somewhere() -> None:
    """A relative link names a file or directory that exists."""
    broken = {
        f"{page.relative_to(ROOT)} -> {target}"
        for page in pages()
        for target in LINK.findall(page.read_text())
        if not target.startswith(("http://", "https://", "mailto:"))
        if not (page.parent / target).exists()
    }
    assert broken == set()
