"""Laws of `resultd demo` as a command; the demo itself runs in tests/end_to_end."""

from __future__ import annotations

import importlib.util

import pytest

from tests.client.cli.conftest import Cli


def test_without_the_server_the_demo_says_what_to_install(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo needs the server's extra and names it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    ran = cli("demo")
    assert ran.code == 2
    assert "pip install 'resultd[server]'" in ran.err


def test_too_few_files_are_refused(cli: Cli) -> None:
    """The options have bounds."""
    assert cli("demo", "--files", "1").code == 2
