"""`resultd token new`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from resultd_server.access.authority import Authority
from resultd_server.access.roles import NAME_CHARS_MAX, Role
from resultd_server.token_command import app

SECRET = re.compile(r"^The token, shown only now: (rsd_\S{43})$", re.MULTILINE)


def run(*arguments: str) -> Result:
    """What `resultd token` does with these."""
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "TERM": "dumb"})


def test_what_it_prints_lets_the_token_in(tmp_path: Path) -> None:
    """stdout is the entry for the auth file and no secret, stderr the token, once."""
    made = [
        run("new", 'the "worker" é\\', "--role", "worker", "--namespace", "a", "--namespace", "b"),
        run("new", "web", "--days", "1", "--namespace", "*"),
    ]
    file = tmp_path / "auth.toml"
    file.write_text("".join(each.stdout for each in made))
    known = Authority(file)
    known.take(known.read())
    tokens = []
    for each in made:
        assert each.exit_code == 0
        (token,) = SECRET.findall(each.stderr)
        assert token not in each.stdout
        tokens.append(token)
    worker, web = (known.bearer(token) for token in tokens)
    assert worker.name == 'the "worker" é\\'
    assert [worker.role_in(where) for where in ("a", "b", "c")] == [Role.WORKER, Role.WORKER, None]
    assert web.role_in("any") == Role.READER
    assert not worker.expired(1e12)
    assert web.expired(1e12)


def test_what_it_prints_may_be_added_to_any_auth_file(tmp_path: Path) -> None:
    """Its name as long as may be, a namespace named twice, a file whose last line does not end."""
    file = tmp_path / "auth.toml"
    first = f'[[tokens]]\nname = "x"\nsha256 = "{"0" * 64}"\nroles = {{ a = "reader" }}'
    name = "n" * NAME_CHARS_MAX
    made = run("new", name, "--namespace", "a", "--namespace", "a", "--namespace", "b")
    file.write_text(first + made.stdout)
    known = Authority(file)
    known.take(known.read())
    (token,) = SECRET.findall(made.stderr)
    assert known.bearer(token).name == name
    assert set(known.bearer(token).roles) == {"a", "b"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("x", "--role", "boss"), "one of reader, worker, admin"),
        (("x", "--namespace", "A b"), "'A b' is not 1 to 64"),
        (("x", "--days", "0"), "--days"),
        (("a\nb",), "people can read"),
        ((" ",), "people can read"),
        (("n" * (NAME_CHARS_MAX + 1),), "at most 255 characters"),
    ],
)
def test_what_the_file_would_refuse_is_refused_here(arguments: tuple[str, ...], said: str) -> None:
    """Exit code 2, a sentence, and no token."""
    found = run("new", *arguments)
    assert found.exit_code == 2
    assert said in found.stderr
    assert "rsd_" not in found.output
