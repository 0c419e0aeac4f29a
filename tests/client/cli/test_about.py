"""Laws of `version`."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from tests.client.cli.conftest import Cli
from tests.client.cli.test_app import free_port
from tests.support import workers
from tests.support.access import AuthFile
from tests.support.server_process import ServerProcess


def test_version_names_both_sides(cli: Cli) -> None:
    """The program's version and the server's, with its engine."""
    assert cli("version").out.startswith(f"resultd {version('resultd')}, server ")
    (shown,) = cli("version", "-o", "json").objects
    assert shown["engine"] == workers.ENGINE


@pytest.mark.parametrize("output", ["table", "json"])
@pytest.mark.parametrize("url", ["resultd://127.0.0.1:PORT?timeout=0.2", "resultds://h?ca=/"])
def test_version_is_known_without_a_server(cli: Cli, url: str, output: str) -> None:
    """Our own version is printed even where no server is reached; the exit code tells."""
    ran = cli("version", "-o", output, url=url.replace("PORT", str(free_port())))
    assert ran.code == 2
    assert version("resultd") in ran.out


@pytest.mark.parametrize("output", ["table", "json"])
def test_version_is_known_where_a_server_refuses_us(cli: Cli, output: str, tmp_path: Path) -> None:
    """A server that lets nobody in without a credential, and none: ours is printed all the same."""
    with ServerProcess(tmp_path, "--auth-file", str(AuthFile(tmp_path).path)) as server:
        ran = cli("version", "-o", output, url=f"resultd://{server.address}")
    assert ran.code == 2
    assert version("resultd") in ran.out
    assert "credential" in ran.err
