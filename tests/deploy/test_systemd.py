"""The systemd unit: what it starts is there, what it may do is little."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resultd_server.serve import EXIT_CONFIG
from tests.deploy.chart import DEPLOY
from tests.support import serve_command

UNIT = DEPLOY / "systemd" / "resultd.service"
EXPOSURE_MAX = 15
"""systemd's own measure times ten; an unconfined service has 96."""


def said() -> dict[str, str]:
    """The unit's settings; of several the last."""
    lines = (line.partition("=") for line in UNIT.read_text().splitlines())
    return {name: value for name, is_set, value in lines if is_set and not name.startswith("#")}


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that is there on this machine."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd on this machine")
    text = UNIT.read_text().replace("/opt/resultd/bin/resultd", sys.executable)
    path = tmp_path / UNIT.name
    path.write_text(text)
    return path


def analyze(*arguments: str | Path) -> None:
    """Runs systemd-analyze; fails with what it says."""
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_has_nothing_to_say_against_it(unit: Path) -> None:
    """`systemd-analyze verify` knows every setting."""
    analyze("verify", unit)


def test_it_may_do_little(unit: Path) -> None:
    """By systemd's own measure its exposure is low."""
    analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", unit)


def test_it_starts_the_server_with_flags_there_are() -> None:
    """Flags are settings, data lies in the state directory, and it is nobody's root."""
    _, serve, *arguments = shlex.split(said()["ExecStart"])
    assert serve == "serve"
    settings = serve_command.settings(arguments)
    assert str(settings.data) == f"/var/lib/{said()['StateDirectory']}"
    assert settings.loopback
    assert said()["DynamicUser"] == "yes"
    # Beyond the drain: what workers and the store need to end.
    assert int(said()["TimeoutStopSec"]) >= settings.drain_s + 10


def test_what_cannot_start_is_not_tried_again() -> None:
    """The exit code of unusable settings is the one that prevents a restart."""
    assert said()["RestartPreventExitStatus"] == str(EXIT_CONFIG)
    assert said()["Restart"] == "on-failure"
