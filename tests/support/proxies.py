"""nginx, HAProxy and Envoy, as `deploy/proxies` sets them up, on ports and times of the tests."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.addresses import free_address
from tests.tooling.repository import ROOT

CONFIGS = ROOT / "deploy" / "proxies"
START_S = 20.0
STOP_S = 10.0

_TLS = "/etc/resultd/tls/"


@dataclass(frozen=True)
class Kind:
    """A proxy: its program, its configuration, and what the tests change in that.

    `swaps`: what stands there and what is to stand there instead, with `{port}`, `{target}`,
    `{target_port}` and `{idle}` for this proxy's port, the address behind it, and how many
    seconds a stream may be silent. `plain`: the same, to do without TLS.
    """

    program: str
    config: str
    command: tuple[str, ...]
    swaps: Mapping[str, str]
    plain: Mapping[str, str]


KINDS = {
    "nginx": Kind(
        "nginx",
        "nginx.conf",
        ("-c", "{config}", "-p", "{directory}", "-g", "daemon off; pid {directory}/pid;"),
        {
            "listen 443": "listen 127.0.0.1:{port}",
            "server 127.0.0.1:7758": "server {target}",
            "grpc_read_timeout    60s": "grpc_read_timeout {idle}s",
            "grpc_send_timeout    60s": "grpc_send_timeout {idle}s",
            "client_body_timeout 60s": "client_body_timeout {idle}s",
            "send_timeout        60s": "send_timeout {idle}s",
        },
        {"ssl http2": "http2", r"re:\s+ssl_certificate.*": ""},
    ),
    "haproxy": Kind(
        "haproxy",
        "haproxy.cfg",
        ("-db", "-f", "{config}"),
        {
            "bind :443": "bind 127.0.0.1:{port}",
            "server one 127.0.0.1:7758": "server one {target}",
            "timeout client  60s": "timeout client {idle}s",
            "timeout server  60s": "timeout server {idle}s",
        },
        {"re: ssl crt .*": " proto h2"},
    ),
    "envoy": Kind(
        "envoy",
        "envoy.yaml",
        ("-c", "{config}", "--use-dynamic-base-id", "--concurrency", "1", "-l", "warn"),
        {
            "address: 0.0.0.0, port_value: 443": "address: 127.0.0.1, port_value: {port}",
            "port_value: 7758": "port_value: {target_port}",
            "stream_idle_timeout: 60s": "stream_idle_timeout: {idle}s",
        },
        {
            r"re:\n        - transport_socket:\n(?:            .*\n)+?          filters:": (
                "\n        - filters:"
            )
        },
    ),
}


_PLACES = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"]


def _found(name: str) -> str | None:
    return shutil.which(KINDS[name].program, path=os.pathsep.join(_PLACES))


def why_not(name: str) -> str | None:
    """Why there is no such proxy here, or None."""
    return None if _found(name) else f"{KINDS[name].program} is not on this machine"


def certificate(directory: Path) -> Path:
    """A directory with server.crt, server.key and server.pem for localhost."""
    key, crt = directory / "server.key", directory / "server.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(crt)],
        check=True, capture_output=True,
    )  # fmt: skip
    (directory / "server.pem").write_bytes(crt.read_bytes() + key.read_bytes())
    key.chmod(0o644)  # workers of a proxy may run as somebody else
    return directory


class Proxy:
    """One of them, running.

    with Proxy("nginx", tmp_path, server.address, idle_s=5, tls=certificate(tmp_path)) as proxy:
        proxy.address
    """

    def __init__(
        self, name: str, directory: Path, target: str, *, idle_s: int, tls: Path | None = None
    ) -> None:
        self._kind = KINDS[name]
        program = _found(name)
        assert program is not None, why_not(name)
        self._program = program
        self.address = free_address()
        self._directory = directory / f"{name}-{self.address.rpartition(':')[2]}"
        self._directory.mkdir()
        self._config = self._directory / self._kind.config
        self._config.write_text(self._configured(target, idle_s, tls))

    def _configured(self, target: str, idle_s: int, tls: Path | None) -> str:
        text = (CONFIGS / self._kind.config).read_text()
        swaps = {**self._kind.swaps, **({} if tls else self._kind.plain)}
        if tls is not None:
            swaps[_TLS] = f"{tls}/"
        said = {
            "port": self.address.rpartition(":")[2],
            "target": target,
            "target_port": target.rpartition(":")[2],
            "idle": str(idle_s),
        }
        for old, new in swaps.items():
            pattern = old.removeprefix("re:") if old.startswith("re:") else re.escape(old)
            for name, value in said.items():
                new = new.replace(f"{{{name}}}", value)
            text, count = re.subn(pattern, new.replace("\\", r"\\"), text)
            assert count, f"{self._kind.config} says no more {old!r}"
        return text

    def __enter__(self) -> Proxy:
        arguments = [
            each.format(config=self._config, directory=self._directory)
            for each in self._kind.command
        ]
        self._log = (self._directory / "log").open("wb")
        self._process = subprocess.Popen(
            [self._program, *arguments], stdout=self._log, stderr=self._log
        )
        deadline = time.monotonic() + START_S
        while not self._listens():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"it does not listen\n{self.log()}"
            time.sleep(0.02)
        return self

    def _listens(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), 1.0).close()
        except OSError:
            return False
        return True

    def log(self) -> str:
        """What it has written."""
        return (self._directory / "log").read_text(errors="replace")

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
