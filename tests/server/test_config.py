"""Settings: flags over environment over file over defaults; what is wrong says what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from resultd_server import limits
from resultd_server.config import NUMBER_MAX, ConfigError, Settings, bytes_of, load, shown_default
from tests.tooling.repository import ROOT

GIB = 1024**3


def settings(
    file: Path | None = None, environ: dict[str, str] | None = None, **flags: Any
) -> Settings:
    """The settings in force, with the memory engine unless something else is said."""
    said = {"engine": "memory", **flags} if "data" not in flags else flags
    return load(said, environ or {}, file)


def toml(directory: Path, text: str) -> Path:
    """A configuration file."""
    file = directory / "resultd.toml"
    file.write_text(text)
    return file


def test_the_nearest_source_wins(tmp_path: Path) -> None:
    """A flag beats the environment, that the file, that the default."""
    file = toml(tmp_path, 'drain_s = 1\nlog_level = "debug"\nstream_age_s = 5\n')
    environ = {"RESULTD_DRAIN_S": "2", "RESULTD_LOG_LEVEL": "error"}
    found = settings(file, environ, drain_s=3.0)
    assert (found.drain_s, found.log_level, found.stream_age_s) == (3.0, "error", 5.0)
    assert found.listen == "127.0.0.1:7758"


def test_a_flag_not_given_hides_nothing() -> None:
    """A flag that is None leaves the environment its say."""
    assert settings(environ={"RESULTD_DRAIN_S": "2"}, drain_s=None).drain_s == 2


def test_the_processs_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an environment of the caller's the process's own counts."""
    monkeypatch.setenv("RESULTD_DRAIN_S", "7")
    assert load({"engine": "memory"}).drain_s == 7


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("10GiB", 10 * GIB),
        ("1.5 GiB", 3 * GIB // 2),
        ("2g", 2 * GIB),
        ("4096 KB", 4 * 1024**2),
        ("1T", 1024 * GIB),
        ("1048576", 1024**2),
        (2 * GIB, 2 * GIB),
    ],
)
def test_sizes_are_written_as_people_write_them(said: str | int, size: int) -> None:
    """A size is a number of bytes or one with a unit, from every source."""
    assert settings(max_db_bytes=said).max_db_bytes == size
    assert settings(environ={"RESULTD_MAX_DB_BYTES": str(said)}).max_db_bytes == size


@pytest.mark.parametrize(
    ("said", "size"),
    [
        (str(NUMBER_MAX), NUMBER_MAX),
        ("9007199254740993", 2**53 + 1),
        ("0.1k", 102),
    ],
)
def test_a_size_is_exact(said: str, size: int) -> None:
    """To the byte, up to the largest; of a fraction of one the whole bytes below it."""
    assert settings(bytes_per_namespace=said).bytes_per_namespace == size


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_db_bytes": "lots"}, "max_db_bytes: is not a size.*'10GiB'.*lots"),
        ({"max_db_bytes": "1KiB"}, "max_db_bytes: .*greater than or equal.*1024"),
        ({"max_db_bytes": "200TiB"}, "max_db_bytes: .*less than or equal to 70368744177664"),
        ({"max_db_bytes": "99999999TiB"}, "max_db_bytes: .*less than or equal"),
        ({"max_db_bytes": 2**70}, "max_db_bytes: .*less than or equal"),
        ({"max_db_bytes": "9" * 400 + "T"}, "max_db_bytes: is not a size.*'10GiB'"),
        ({"max_db_bytes": "1." + "9" * 400}, "max_db_bytes: is not a size.*'10GiB'"),
        ({"bytes_per_namespace": "99999999999999999999T"}, "bytes_per_namespace: .*less than"),
        ({"streams_per_namespace": 2**63}, "streams_per_namespace: .*less than or equal to 9223"),
        ({"drain_s": -1}, "drain_s: .*greater than or equal to 0"),
        ({"engine": "lmbd"}, "engine: .*'lmdb' or 'memory'.*lmbd"),
        ({"listen": "7758"}, "listen: is not host:port or unix:PATH, for instance 127"),
        ({"listen": "127.0.0.1:99999"}, "listen: is not host:port"),
        ({"admin": "7759"}, "admin: is not host:port, for instance 127.0.0.1:7759"),
        ({"listen": "unix:"}, "listen: is not host:port or unix:PATH"),
        ({"engine": "lmdb"}, "needs a directory: name it with --data"),
    ],
)
def test_what_cannot_be_used_is_said(flags: dict[str, Any], message: str) -> None:
    """A value that cannot be used names the setting, the reason and what would do."""
    with pytest.raises(ConfigError, match=message):
        settings(**flags)


@pytest.mark.parametrize("name", ["data", "tls_cert", "tls_key", "tls_client_ca", "auth_file"])
@pytest.mark.parametrize("said", ["", " "])
def test_an_empty_path_is_none(tmp_path: Path, name: str, said: str) -> None:
    """A variable that is set to nothing is not the current directory, wherever it stands."""
    message = f"{name}: is empty: name a path, or leave the setting out"
    with pytest.raises(ConfigError, match=message):
        settings(environ={f"RESULTD_{name.upper()}": said})
    with pytest.raises(ConfigError, match=message):
        settings(toml(tmp_path, f"{name} = {said!r}"))


def test_unknown_settings_are_refused_with_a_suggestion(tmp_path: Path) -> None:
    """A key nobody knows is refused by the name it was given, with the nearest that is known."""
    with pytest.raises(ConfigError, match=r"listn in .*resultd.toml is not .* did you mean listen"):
        settings(toml(tmp_path, 'listn = "x"'))
    with pytest.raises(ConfigError, match=r"RESULTD_LISTN is not .* did you mean RESULTD_LISTEN\?"):
        settings(environ={"RESULTD_LISTN": "x"})
    with pytest.raises(ConfigError, match=r"RESULTD_QUUX is not a setting: known are data, listen"):
        settings(environ={"RESULTD_QUUX": "x"})


def test_variables_of_the_client_are_left_alone() -> None:
    """RESULTD_URL and the token are the client's, RESULTD_CONFIG names the file: no settings."""
    theirs = {"RESULTD_URL": "resultd://h", "RESULTD_TOKEN": "x", "RESULTD_TOKEN_FILE": "x"}
    settings(environ={**theirs, "RESULTD_CONFIG": "x", "HOME": "/"})


@pytest.mark.parametrize("text", [None, "not toml", "a = '\udcff'"])
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, text: str | None) -> None:
    """A file that is missing or is not TOML ends in a sentence that names it."""
    file = tmp_path / "resultd.toml"
    if text is not None:
        file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"resultd\.toml cannot be read"):
        settings(file)


def test_a_file_that_is_named_is_bounded(tmp_path: Path) -> None:
    """It is read whole as far as 16 MiB; what has no end is refused, and not read to it."""
    file = tmp_path / "file"
    file.write_bytes(bytes(limits.SETTING_FILE_BYTES_MAX))
    assert len(bytes_of(file)) == limits.SETTING_FILE_BYTES_MAX == 16 * 2**20
    with file.open("ab") as longer:
        longer.write(b"1")
    for read in (bytes_of, settings):
        for endless in (file, Path("/dev/zero")):
            with pytest.raises(ConfigError, match=f"{endless} cannot be read: it has more than"):
                read(endless)


@pytest.mark.parametrize(
    "listen",
    ["127.0.0.1:0", "127.8.9.1:1", "[::1]:7758", "localhost:7758", "unix:/run/resultd.sock"],
)
def test_loopback_needs_no_word(listen: str) -> None:
    """Where nobody else can connect, no flag is asked for."""
    assert settings(listen=listen).loopback


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:7758", "[::]:7758", "10.0.0.1:1", "example.org:1", "127.example.org:1"]
)
def test_listening_to_others_must_be_said(listen: str) -> None:
    """Beyond loopback the server does not listen without --insecure, unless all is guarded."""
    with pytest.raises(ConfigError, match=r"listen on 127\.0\.0\.1 .* or say --insecure"):
        settings(listen=listen)
    assert not settings(listen=listen, insecure=True).loopback
    assert not settings(listen=listen, auth_file="a", **TLS).loopback
    assert not settings(listen=listen, tls_client_ca="a", **TLS).loopback


TLS: dict[str, Any] = {"tls_cert": "c", "tls_key": "k"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, r"encrypt \(--tls-cert and --tls-key\) and ask who calls \(--auth-file, or"),
        ({"auth_file": "a"}, r"elsewhere: encrypt \(--tls-cert and --tls-key\), listen"),
        (TLS, r"elsewhere: ask who calls \(--auth-file, or --tls-client-ca\), listen"),
    ],
)
def test_what_lacks_beyond_loopback_is_named(flags: dict[str, Any], message: str) -> None:
    """Encryption without asking who calls, and tokens in the clear, need --insecure too."""
    with pytest.raises(ConfigError, match=message):
        settings(listen="0.0.0.0:7758", **flags)
    settings(listen="0.0.0.0:7758", insecure=True, **flags)
    settings(listen="unix:/run/resultd.sock", **flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tls_cert": "c"}, "give both --tls-cert and --tls-key"),
        ({"tls_key": "k"}, "give both --tls-cert and --tls-key"),
        ({"tls_client_ca": "a"}, "with --tls-client-ca"),
    ],
)
def test_files_of_tls_go_together(flags: dict[str, Any], message: str) -> None:
    """A certificate with its key, and clients' only with the server's."""
    with pytest.raises(ConfigError, match=message):
        settings(**flags)


def test_lmdb_is_the_default(tmp_path: Path) -> None:
    """With a directory nothing else needs to be said."""
    found = settings(data=tmp_path)
    assert (found.engine, found.data) == ("lmdb", tmp_path)


@pytest.mark.parametrize(
    ("admin", "is_open"),
    [("", False), ("127.0.0.1:7759", False), ("[::1]:0", False), ("localhost:7759", False),
     ("0.0.0.0:7759", True), ("10.0.0.1:7759", True), ("metrics.internal:7759", True)],
)  # fmt: skip
def test_an_admin_port_beyond_loopback_is_open(admin: str, is_open: bool) -> None:
    """It asks nobody who they are, so it matters who can connect; by default nobody can."""
    assert settings(admin=admin).admin_open is is_open
    assert not settings().admin_open


@pytest.mark.parametrize(
    ("mib", "taken"), [(3 * 64 - 1, False), (3 * 64, True), (3 * 64 + 1, True), (10 * 192, True)]
)
def test_a_process_needs_some_memory(tmp_path: Path, mib: int, taken: bool) -> None:
    """What all processes may hold is 64 MiB each at least."""
    assert limits.MEMORY_LEAST_BYTES == 64 * 2**20
    said = {"data": tmp_path, "workers": 3, "memory_max_bytes": f"{mib}MiB"}
    if taken:
        assert load(said, {}).memory_max_bytes == mib * 2**20
    else:
        with pytest.raises(ConfigError, match="3 processes need 201326592 bytes at least"):
            load(said, {})


def page() -> str:
    """docs/operating.md."""
    return (ROOT / "docs/operating.md").read_text()


def test_the_page_names_every_setting_with_its_default() -> None:
    """None is missing, none is there no longer, and no default is another."""
    table = page().partition("| setting | default | |\n")[2].partition("\n\n")[0]
    found = {}
    for row in table.splitlines()[1:]:
        names, default, _ = row.strip("|").split("|")
        found.update(dict.fromkeys(re.findall(r"`(\w+)`", names), default.strip()))
    assert found == {name: shown_default(name) or "–" for name in Settings.model_fields}


def test_the_pages_file_is_one_and_gives_way_as_it_says(tmp_path: Path) -> None:
    """A flag before a variable, a variable before the file, the file before the default."""
    (block,) = re.findall(r"^```toml\n(.*?)^```$", page(), re.DOTALL | re.MULTILINE)
    file = tmp_path / "resultd.toml"
    file.write_text(block)
    found = load({"drain_s": 1.0}, {"RESULTD_DRAIN_S": "2", "RESULTD_LISTEN": "127.0.0.1:1"}, file)
    assert (found.drain_s, found.listen) == (1.0, "127.0.0.1:1")
    assert (found.reflection, found.max_db_bytes) == (False, 10 * 1024**3)
    assert found.stream_age_s == Settings.model_fields["stream_age_s"].default
