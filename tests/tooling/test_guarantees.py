"""What the page of guarantees says is checked, is."""

from __future__ import annotations

import re

from tests.tooling.repository import ROOT

PAGE = ROOT / "docs" / "guarantees.md"
CHECK = re.compile(r"`(tests/[a-z_/]+\.py)(?:::(test_\w+))?`")


def test_every_check_that_is_named_exists() -> None:
    """A test is in the file that is named, a campaign can be run."""
    missing = []
    for name, test in CHECK.findall(PAGE.read_text()):
        file = ROOT / name
        text = file.read_text() if file.exists() else ""
        wanted = rf"def {test}\(" if test else r"(?m)^(CAMPAIGN = |if __name__ == )"
        if not re.search(wanted, text):
            missing.append(f"{name} {test}")
    assert missing == []


def test_every_guarantee_names_what_checks_it() -> None:
    """No section is a promise that nobody looks after."""
    sections = PAGE.read_text().split("\n## ")[1:]
    assert len(sections) >= 11
    assert [each.splitlines()[0] for each in sections if not CHECK.search(each)] == []
