"""A private redis-server: a broker, or Celery's own result backend to compare with.

with RedisServer() as redis_server:
    redis_server.client().ping()
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

START_S = 10.0
STOP_S = 10.0


def why_no_redis() -> str | None:
    """What is missing to have a redis-server, None if nothing is."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed"
    if importlib.util.find_spec("redis") is None:
        return "the Python package redis is not installed"
    return None


class RedisServer:
    """`redis-server` on a free port of 127.0.0.1 and a directory of its own.

    Args:
        appendfsync: "always", "everysec" or "no": keep an append-only file and sync it so;
            nothing is kept if None.
        arguments: more of redis-server's command line.
    """

    def __init__(self, *, appendfsync: str | None = None, arguments: tuple[str, ...] = ()) -> None:
        self._appendfsync = appendfsync
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The address of its first database."""
        return self.database(0)

    @property
    def pid(self) -> int:
        """The process under way."""
        assert self._process is not None, "not started"
        return self._process.pid

    def database(self, number: int) -> str:
        """The address of one of its 64 databases: for who must not meet the others."""
        return f"redis://127.0.0.1:{self.port}/{number}"

    def client(self, number: int = 0) -> Any:
        """A client of one database, that answers with str; to be closed."""
        import redis  # here: a machine without it can still ask what is missing

        # Without a limit of its own a blocking call ends when it said it would.
        url = self.database(number)
        return redis.Redis.from_url(url, decode_responses=True, socket_timeout=None)

    def log(self) -> str:
        """All it has logged."""
        path = None if self._directory is None else self._directory / "log"
        return path.read_text() if path is not None and path.exists() else ""

    def start(self) -> RedisServer:
        """Starts it and waits until it answers."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="redis-test-"))
        if not self.port:
            self.port = _free_port()
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log)
        try:
            self._await_answer(self._process)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> None:
        """SIGTERM, and waits; SIGKILL for one that does not end."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """SIGKILL: no word to anybody, nothing written on the way out."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stops it and deletes its directory."""
        self.stop()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _command(self) -> list[str]:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--dir", str(self._directory), "--databases", "64", "--save", ""]
        if self._appendfsync is not None:
            command += ["--appendonly", "yes", "--appendfsync", self._appendfsync]
        return [*command, *self._arguments]

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        import redis

        end = time.monotonic() + START_S
        with self.client() as client:
            while time.monotonic() < end and process.poll() is None:
                try:
                    client.ping()
                except redis.ConnectionError:  # not listening yet, or still loading
                    time.sleep(0.01)
                else:
                    return
        raise AssertionError(f"redis-server did not answer in {START_S:g} s\n{self.log()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
