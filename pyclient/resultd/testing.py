"""A real server for anybody's tests.

    with resultd.testing.Server() as server:
        client = resultd.Client(server.url)

    @pytest.fixture(scope="session")
    def resultd_url():
        with resultd.testing.Server() as server:
            yield server.url

Needs `resultd[server]`. The server keeps its data in a temporary directory, unless it is given
one, and listens on a free port of 127.0.0.1.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType

__all__ = ["Server", "ServerError"]

_READY = re.compile(r"^resultd ready on (.+):(\d+)\s*$")


class ServerError(RuntimeError):
    """The server did not start, or did not stop."""


class Server:
    """A server in a process of its own.

    Args:
        data: directory to keep data in; a temporary one, deleted at the end, if None.
        engine: "lmdb" or "memory"; what `stop` and `kill` leave of the latter is nothing.
        arguments: more of the server's command line.
        start_timeout: seconds it may take to be ready.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        engine: str = "lmdb",
        arguments: tuple[str, ...] = (),
        start_timeout: float = 30.0,
    ) -> None:
        self._given = data
        self._engine = engine
        self._arguments = arguments
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[str] | None = None
        self._log: Path | None = None
        self._base: Path | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The address, for `Client`."""
        return f"resultd://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process, None when none runs."""
        return None if self._process is None else self._process.pid

    def log(self) -> str:
        """Return what the server wrote to its standard error so far."""
        return "" if self._log is None else self._log.read_text(errors="replace")

    def start(self) -> Server:
        """Start the server and return when it is ready.

        Raises:
            ServerError: it is not installed, or did not become ready; with its last lines.
        """
        if self._process is not None:
            return self
        if importlib.util.find_spec("resultd_server") is None:
            raise ServerError("the server is not installed: pip install 'resultd[server]'")
        if self._base is None:
            self._base = Path(tempfile.mkdtemp(prefix="resultd-test-"))
            self._log = self._base / "server.log"
        assert self._log is not None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(self._base), stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            self.port = self._await_ready(self._process)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self, timeout: float = 20.0) -> None:
        """Ask the server to drain and end, and wait for it.

        Raises:
            ServerError: it had to be killed after `timeout` seconds.
        """
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ServerError(f"the server did not stop in {timeout} s\n{self._tail()}") from None
        finally:
            _close(process)

    def kill(self) -> None:
        """End the server at once, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close(process)

    def restart(self) -> Server:
        """Stop the server if it runs and start it on the same port and data."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """Stop the server and delete what is temporary."""
        try:
            self.stop()
        finally:
            if self._base is not None:
                shutil.rmtree(self._base, ignore_errors=True)
                self._base = self._log = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _command(self, base: Path) -> list[str]:
        data = str(self._given if self._given is not None else base / "data")
        command = [sys.executable, "-m", "resultd_server"]
        command += ["--data", data, "--listen", f"127.0.0.1:{self.port}"]
        return [*command, "--engine", self._engine, *self._arguments]

    def _await_ready(self, process: subprocess.Popen[str]) -> int:
        # Read in a thread: a server that says nothing must not hang whoever starts it.
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert process.stdout is not None
        stdout = process.stdout
        threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
        try:
            line = lines.get(timeout=self._start_timeout)
        except queue.Empty:
            line = ""
        ready = _READY.match(line)
        if ready is None:
            raise ServerError(f"the server did not become ready: {line!r}\n{self._tail()}")
        return int(ready[2])

    def _tail(self) -> str:
        return "\n".join(self.log().splitlines()[-20:])


def _close(process: subprocess.Popen[str]) -> None:
    if process.stdout is not None:
        process.stdout.close()
