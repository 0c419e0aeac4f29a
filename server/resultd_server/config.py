"""Settings: flags, then `RESULTD_*` of the environment, then a TOML file, then defaults.

resultd serve --data /var/lib/resultd --listen 127.0.0.1:7758
RESULTD_LISTEN=127.0.0.1:7758 resultd serve
resultd serve --config resultd.toml
"""

from __future__ import annotations

import difflib
import importlib.util
import ipaddress
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from resultd_server import limits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found]  # 3.10 only

ENV_PREFIX = "RESULTD_"
NOT_SETTINGS = frozenset({"RESULTD_URL", "RESULTD_TOKEN", "RESULTD_TOKEN_FILE", "RESULTD_CONFIG"})
"""Variables of the same prefix that other parts read."""

SIZES = ("max_db_bytes", "bytes_per_namespace", "memory_max_bytes")
"""Settings that people write with a unit."""

MAX_DB_BYTES = 64 * 1024**4
"""The map takes a tenth more of the address space, of which a process has 128 TiB on x86-64."""

NUMBER_MAX = 2**63 - 1
"""Of quotas: the server tells them in a message (uint64), and counts in signed 64 bits."""

_QUOTAS = frozenset(
    f"{what}_per_namespace" for what in ("streams", "waited_ids", "records", "bytes")
)

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+):(?P<port>\d{1,5})")
_SIZE = re.compile(r"(\d{1,20})(?:\.(\d{1,20}))?\s*([KMGT]?)i?B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def shown_default(name: str) -> str | bool:
    """A setting's default as people write it; False where there is none to show."""
    default = Settings.model_fields[name].default
    if isinstance(default, bool):
        return "yes" if default else "no"
    if name in SIZES and default is not None:
        return f"{default // 1024**3}GiB"
    return str(default) if default not in (None, "") else False


class ConfigError(Exception):
    """A setting that cannot be used: says which, why, and what to do."""


def bytes_of(file: Path) -> bytes:
    """What is in a file that a setting names. Raises ConfigError, if it has no end too."""
    try:
        with file.open("rb") as opened:
            found = opened.read(limits.SETTING_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError:  # a NUL in it
        raise ConfigError(f"{str(file)!r} is no file's name: write it anew.") from None
    if len(found) > limits.SETTING_FILE_BYTES_MAX:
        raise ConfigError(
            f"{file} cannot be read: it has more than {limits.SETTING_FILE_BYTES_MAX} bytes."
        )
    return found


class Settings(BaseModel):
    """What can be set. Every setting has a flag, a variable and a TOML key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path | None = Field(
        None, description="Directory of the store. Needed by the lmdb engine; made if missing."
    )
    listen: str = Field(
        "127.0.0.1:7758",
        description="host:port, or unix:PATH. Port 0 takes a free one, "
        "named in the line that says the server is ready.",
    )
    admin: str = Field(
        "",
        description="host:port for /metrics, /livez and /readyz over HTTP, for instance "
        "127.0.0.1:7759; none unless said. It tells no names, ids or values, and asks nobody who "
        "they are.",
    )
    engine: Literal["lmdb", "memory"] = Field(
        "lmdb", description="lmdb keeps everything on disk; memory loses it when it stops."
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that serve together, over one store and one port. More than one "
        "pays on more than two cores, for single calls, streams and reads; they have no journal.",
    )
    max_db_bytes: int = Field(
        64 * 1024**3,
        ge=1024**2,
        le=MAX_DB_BYTES,
        description="Live data the store may hold, '10GiB' or bytes. Does not reserve disk space.",
    )
    memory_max_bytes: int | None = Field(
        None,
        ge=1,
        description="Memory that all processes together may hold, '2GiB' or bytes, 64 MiB each at "
        "least; beyond it calls and connections make room. Unless said, three quarters of what the "
        "machine or its control group has.",
    )
    drain_s: float = Field(
        10.0, ge=0, le=600, description="How long SIGTERM waits for calls under way, in seconds."
    )
    stream_age_s: float = Field(
        600.0,
        ge=1,
        description="How old a stream becomes before its client resumes it, in seconds, ± 20 %.",
    )
    streams_per_namespace: int | None = Field(
        None,
        ge=1,
        le=NUMBER_MAX,
        description="Streams one namespace may have open in a process; as many as fit.",
    )
    waited_ids_per_namespace: int | None = Field(
        None,
        ge=1,
        le=NUMBER_MAX,
        description="Ids and groups the streams of one namespace may wait for in a process, all "
        "together; as many as fit.",
    )
    records_per_namespace: int | None = Field(
        None,
        ge=1,
        le=NUMBER_MAX,
        description="Records of tasks one namespace may hold; as many as fit.",
    )
    bytes_per_namespace: int | None = Field(
        None,
        ge=1,
        le=NUMBER_MAX,
        description="Bytes one namespace may hold, '10GiB' or a number: keys and values of "
        "records, groups, members, revocations and tombstones; as many as fit.",
    )
    tls_cert: Path | None = Field(
        None, description="PEM file with the server's certificate and those above it; reloaded."
    )
    tls_key: Path | None = Field(None, description="PEM file with its private key; reloaded.")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file with who signs clients' certificates: every client needs one. "
        "Reloaded.",
    )
    auth_file: Path | None = Field(
        None,
        description="TOML file with tokens, JWT issuer and certificates, and their roles. "
        "Reloaded; made with `resultd token new`.",
    )
    insecure: bool = Field(
        False, description="Listen beyond loopback although TLS or authentication is missing."
    )
    reflection: bool = Field(True, description="Serve gRPC reflection, for buf curl and grpcurl.")
    channelz: bool = Field(
        False,
        description="Serve gRPC channelz, which tells of all connections; for admins of every "
        "namespace. Needs grpcio-channelz: pip install 'resultd[channelz]'.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level logged."
    )

    @field_validator(*SIZES, mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError("is not a size: write bytes, or a number with a unit like '10GiB'")
        whole, fraction, unit = match[1], match[2] or "", match[3]
        # In integers: a float has not every number of bytes that a quota may be.
        return int(whole + fraction) * 1024 ** _POWERS[unit.upper()] // 10 ** len(fraction)

    @field_validator("data", "tls_cert", "tls_key", "tls_client_ca", "auth_file", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        # An empty variable: Path("") would be the current directory.
        if isinstance(value, str) and not value.strip():
            raise ValueError("is empty: name a path, or leave the setting out")
        return value

    @field_validator("data", "listen", "admin", mode="before")
    @classmethod
    def _in_utf_8(cls, value: object) -> object:
        # LMDB and gRPC take no other names, and would say so when half a store is made.
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise ValueError("is not UTF-8: name another") from None
        return value

    @field_validator("channelz")
    @classmethod
    def _installed(cls, value: bool) -> bool:
        if value and importlib.util.find_spec("grpc_channelz") is None:
            raise ValueError("needs grpcio-channelz: pip install 'resultd[channelz]'")
        return value

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str) -> str:
        if value.startswith("unix:") and value != "unix:":
            return value
        match = _ADDRESS.fullmatch(value)
        if match is None or int(match["port"]) > 65_535:
            raise ValueError("is not host:port or unix:PATH, for instance 127.0.0.1:7758")
        return value

    @field_validator("admin")
    @classmethod
    def _admin_address(cls, value: str) -> str:
        match = _ADDRESS.fullmatch(value)
        if value and (match is None or int(match["port"]) > 65_535):
            raise ValueError("is not host:port, for instance 127.0.0.1:7759")
        return value

    @property
    def quotas(self) -> dict[str, int]:
        """What one namespace may have: the quotas that are set, by the settings' names."""
        said = {name: getattr(self, name) for name in type(self).model_fields if name in _QUOTAS}
        return {name: limit for name, limit in said.items() if limit is not None}

    @property
    def authenticates(self) -> bool:
        """Whether callers have to show who they are."""
        return self.auth_file is not None or self.tls_client_ca is not None

    @property
    def loopback(self) -> bool:
        """Whether nobody but this host can connect."""
        return _is_loopback(self.listen)

    @property
    def admin_open(self) -> bool:
        """Whether others than this host can reach the admin port, which asks nobody."""
        return bool(self.admin) and not _is_loopback(self.admin)


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name, whatever it begins with


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str] | None = None, file: Path | None = None
) -> Settings:
    """The settings in force. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    from_file = _read_file(file) if file else {}
    from_env = {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(ENV_PREFIX) and name not in NOT_SETTINGS
    }
    known = Settings.model_fields
    _refuse_unknown(from_file, known, lambda name: f"{name} in {file}")
    _refuse_unknown(from_env, known, lambda name: ENV_PREFIX + name.upper())
    said = {name: value for name, value in flags.items() if value is not None}
    try:
        settings = Settings(**{**from_file, **from_env, **said})
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None
    if settings.engine == "lmdb" and settings.data is None:
        raise ConfigError("The lmdb engine needs a directory: name it with --data DIR.")
    if settings.workers > 1 and (settings.engine != "lmdb" or settings.listen.startswith("unix:")):
        raise ConfigError(
            "Several workers share a store on disk and a TCP port: use the lmdb engine and "
            "listen on host:port, or leave --workers at 1."
        )
    least_bytes = settings.workers * limits.MEMORY_LEAST_BYTES
    if settings.memory_max_bytes is not None and settings.memory_max_bytes < least_bytes:
        raise ConfigError(
            f"memory_max_bytes: {settings.workers} processes need {least_bytes} bytes at least: "
            "say more, or fewer --workers."
        )
    _check_entrance(settings)
    return settings


def _check_entrance(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("A certificate goes with its key: give both --tls-cert and --tls-key.")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise ConfigError(
            "Clients show certificates to a server that has one: give --tls-cert and --tls-key "
            "with --tls-client-ca."
        )
    lacking = [
        remedy
        for there, remedy in (
            (settings.tls_cert is not None, "encrypt (--tls-cert and --tls-key)"),
            (settings.authenticates, "ask who calls (--auth-file, or --tls-client-ca)"),
        )
        if not there
    ]
    if lacking and not settings.loopback and not settings.insecure:
        raise ConfigError(
            f"{settings.listen} can be reached from elsewhere: {' and '.join(lacking)}, "
            "listen on 127.0.0.1 or a unix socket, or say --insecure."
        )


def _read_file(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = tomllib.loads(bytes_of(file).decode())
    except ValueError as error:  # no UTF-8, no TOML, a number of 5,000 digits
        raise ConfigError(f"The configuration {file} cannot be read: {error}.") from None
    except RecursionError:
        raise ConfigError(f"The configuration {file} is nested too deep: write it anew.") from None
    return found


def _refuse_unknown(found: Iterable[str], known: Iterable[str], where: Any) -> None:
    for name in found:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {where(close[0])}?" if close else f"known are {', '.join(known)}."
        raise ConfigError(f"{where(name)} is not a setting: {hint}")


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    return f"{name}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})."
