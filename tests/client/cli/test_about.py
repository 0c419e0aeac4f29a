"""Laws of `version`."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tests.client.cli.conftest import Cli
from tests.client.cli.test_app import free_port
from tests.support import workers


def test_version_names_both_sides(cli: Cli) -> None:
    """The program's version and the server's, with its engine."""
    assert cli("version").out.startswith(f"resultd {version('resultd')}, server ")
    (shown,) = cli("version", "-o", "json").objects
    assert shown["engine"] == workers.ENGINE


@pytest.mark.parametrize("output", ["table", "json"])
def test_version_is_known_without_a_server(cli: Cli, output: str) -> None:
    """Our own version is printed even where no server answers; the exit code tells."""
    ran = cli("version", "-o", output, url=f"resultd://127.0.0.1:{free_port()}?timeout=0.2")
    assert ran.code == 2
    assert version("resultd") in ran.out
