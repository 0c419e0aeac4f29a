"""The systemd unit: what it starts is there, what it may do is little."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from resultd_server.config import ENV_PREFIX, Settings
from resultd_server.serve import EXIT_CONFIG
from tests.deploy.chart import DEPLOY
from tests.support import serve_command
from tests.tooling.repository import ROOT

UNITS = DEPLOY / "systemd"
UNIT = UNITS / "resultd.service"
BACKUP = UNITS / "resultd-backup.service"
TIMER = UNITS / "resultd-backup.timer"
PROGRAM = "/opt/resultd/bin/resultd"
EXPOSURE_MAX = 15
"""systemd's own measure times ten; an unconfined service has 96."""


def lines(text: str) -> list[tuple[str, str]]:
    """The settings of a unit or a drop-in, in their order."""
    parts = (line.partition("=") for line in text.splitlines())
    return [(name, value) for name, is_set, value in parts if is_set and not name.startswith("#")]


def said(unit: Path = UNIT) -> dict[str, str]:
    """The unit's settings; of several the last."""
    return dict(lines(unit.read_text()))


def variables(text: str) -> dict[str, str]:
    """The environment that a unit or a drop-in gives."""
    pairs = [pair for name, each in lines(text) if name == "Environment" for pair in each.split()]
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def drop_in() -> str:
    """What docs/operating.md adds to the unit."""
    (text,) = re.findall(
        r"^```ini\n(.*?)^```$", (ROOT / "docs/operating.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert isinstance(text, str)
    return text


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A directory with all units, and a program that is there on this machine."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd on this machine")
    for unit in (UNIT, BACKUP, TIMER):
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, sys.executable))
    return tmp_path


def analyze(*arguments: str | Path) -> None:
    """Runs systemd-analyze; fails with what it says."""
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [UNIT.name, BACKUP.name, TIMER.name])
def test_systemd_has_nothing_to_say_against_it(units: Path, name: str) -> None:
    """`systemd-analyze verify` knows every setting."""
    analyze("verify", units / name)


def test_systemd_has_nothing_to_say_against_the_pages_drop_in(units: Path) -> None:
    """The unit as docs/operating.md extends it."""
    override = units / f"{UNIT.name}.d" / "override.conf"
    override.parent.mkdir()
    override.write_text(drop_in())
    analyze("verify", units / UNIT.name)


@pytest.mark.parametrize("name", [UNIT.name, BACKUP.name])
def test_it_may_do_little(units: Path, name: str) -> None:
    """By systemd's own measure its exposure is low."""
    analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", units / name)


def test_it_starts_the_server_with_settings_there_are() -> None:
    """None is a flag, which no file could change; data is the unit's own; it is nobody's root."""
    assert said()["ExecStart"] == f"{PROGRAM} serve"
    settings = serve_command.settings([], variables(UNIT.read_text()))
    assert str(settings.data) == f"/var/lib/{said()['StateDirectory']}"
    assert settings.loopback
    assert said()["DynamicUser"] == "yes"
    # Beyond the drain: what workers and the store need to end.
    assert int(said()["TimeoutStopSec"]) >= settings.drain_s + 10


def test_what_cannot_start_is_not_tried_again() -> None:
    """The exit code of unusable settings is the one that prevents a restart."""
    assert said()["RestartPreventExitStatus"] == str(EXIT_CONFIG)
    assert said()["Restart"] == "on-failure"


def test_the_environment_file_goes_before_what_the_unit_says() -> None:
    """systemd takes it whichever stands first; its name is that of the comment."""
    assert said()["EnvironmentFile"] == "-/etc/default/resultd"
    assert "/etc/default/resultd" in UNIT.read_text().partition("[Unit]")[0]


def test_the_pages_drop_in_hands_over_what_it_names() -> None:
    """Variables are settings, and every file is a credential that was loaded."""
    found = variables(drop_in())
    assert {name.removeprefix(ENV_PREFIX).lower() for name in found} <= set(Settings.model_fields)
    loaded = [
        value.partition(":")[0] for name, value in lines(drop_in()) if name == "LoadCredential"
    ]
    named = [value.removeprefix("%d/") for value in found.values() if value.startswith("%d/")]
    assert sorted(named) == sorted(loaded)


def test_the_backup_is_the_servers_own_and_has_a_place_to_write() -> None:
    """One user, both directories; the command is one there is; old ones go where new ones come."""
    server, backup = said(), said(BACKUP)
    for name in ("User", "DynamicUser", "StateDirectoryMode"):
        assert backup[name] == server[name]
    data, backups = (f"/var/lib/{name}" for name in backup["StateDirectory"].split())
    assert variables(UNIT.read_text())["RESULTD_DATA"] == data
    program, name, *arguments = shlex.split(backup["ExecStart"])
    assert (program, arguments) == (PROGRAM, [data, "--into", backups])
    assert list(entry_points(group="resultd.cli", name=name))
    for key, value in lines(BACKUP.read_text()):
        if key == "ExecStartPost":
            assert shlex.split(value)[:2] == ["/usr/bin/find", f"{backups}/"]
    # LMDB tells readers that live from others by their process numbers.
    assert "PrivatePIDs" not in backup
    assert said(TIMER)["OnCalendar"]
