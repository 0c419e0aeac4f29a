"""Laws of the command as a whole."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import typer

from resultd.cli import app
from resultd.cli.options import Format
from resultd_server import config
from resultd_server.config import Settings
from tests.client.cli.conftest import Cli


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_help_lists_the_commands_of_both_packages(cli: Cli) -> None:
    """`--help` names our commands and `serve`, which the server's package adds."""
    shown = cli("--help").out
    for name in ("get", "wait", "watch", "forget", "group", "version", "demo", "serve"):
        assert name in shown


def test_an_added_command_is_the_one_of_its_package(cli: Cli) -> None:
    """`resultd serve --help` shows the server's settings."""
    shown = cli("serve", "--help")
    assert shown.code == 0
    assert "--listen" in shown.out


def test_help_says_all_of_what_a_setting_is(cli: Cli) -> None:
    """Defaults and extras arrive, which a terminal's markup would swallow with their brackets."""
    shown = " ".join(cli("serve", "--help").out.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in shown
        assert str(field.description) in shown
        default = config.shown_default(name)
        assert not default or f"[default: ({default})]" in shown
    assert "[default: (64GiB)]" in shown
    assert "'resultd[channelz]'" in shown


def test_an_added_group_of_commands_is_one(cli: Cli) -> None:
    """`resultd token new` is a command of the server's package, two words long."""
    shown = cli("token", "new", "--help")
    assert shown.code == 0
    assert "--role" in shown.out


def paths(command: Any, *words: str) -> Iterator[tuple[str, ...]]:
    """Every command below one."""
    below = getattr(command, "commands", {})
    if not below:
        yield words
    for word, each in below.items():
        yield from paths(each, *words, word)


def test_no_output_is_made_for_spreadsheets(cli: Cli) -> None:
    """JSON and tables are all that `--help` offers: no CSV, in which a value could be a formula."""
    offered = set()
    for words in paths(typer.main.get_command(app.app)):
        for choices in re.findall(r"[\[<](\w+(?:\|\w+)+)[\]>]", cli(*words, "--help").out):
            offered |= set(choices.split("|"))
    assert offered >= {each.value for each in Format} == {"table", "json"}
    assert not offered & {"csv", "tsv", "excel", "xlsx", "xls", "ods"}


def test_an_unknown_command_is_a_usage_error(cli: Cli) -> None:
    """A word that is no command ends with exit code 2."""
    assert cli("sevre").code == 2


def test_a_server_that_is_not_there_is_said_in_one_sentence(cli: Cli) -> None:
    """No server: one line on stderr that names the address, exit code 2."""
    url = f"resultd://127.0.0.1:{free_port()}?timeout=0.2"
    ran = cli("get", "t1", url=url)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("resultd: no server answers at resultd://127.0.0.1:")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("url", ["http://x", "resultd://h:99999", "resultd://h?tiemout=1"])
def test_an_address_that_is_none_is_said_in_one_sentence(cli: Cli, url: str) -> None:
    """A bad address: one line on stderr, exit code 2."""
    ran = cli("get", "t1", url=url)
    assert ran.code == 2
    assert ran.err.startswith("resultd: ")
    assert ran.err.count("\n") == 1


def test_what_the_server_refuses_is_said_in_one_sentence(cli: Cli) -> None:
    """The server's refusal reaches the person escaped, with exit code 2 and no traceback."""
    ran = cli("get", "a\x1b[31mb")
    assert ran.code == 2
    assert ran.err.startswith("resultd: ")
    assert "\x1b" not in ran.err


def test_a_command_whose_extra_is_missing_names_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the server's parts `serve` is listed and says what to install."""
    broken = EntryPoint("serve", "no_such_module_anywhere:command", "resultd.cli")
    monkeypatch.setattr(app, "_added", lambda: {"serve": broken})
    assert "serve" in cli("--help").out
    ran = cli("serve", "--data", "x")
    assert ran.code == 2
    assert "pip install 'resultd[server]'" in ran.err
