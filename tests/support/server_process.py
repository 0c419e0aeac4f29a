"""A real server in a process of its own.

with ServerProcess(tmp_path) as server:
    channel = grpc.insecure_channel(server.address)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import workers
from tests.tooling.repository import ROOT

STOP_S = 20.0


class ServerProcess:
    """`python -m resultd_server` on a data directory; what it logs is kept.

    `program`: another module to run, and its first arguments. `within`: a command that runs
    the one that follows it, somewhere else.
    """

    def __init__(
        self,
        directory: Path,
        *flags: str,
        listen: str = "127.0.0.1:0",
        program: tuple[str, ...] = ("resultd_server",),
        environ: Mapping[str, str] | None = None,
        within: tuple[str, ...] = (),
    ) -> None:
        self._log = directory / "server.log"
        self._environ = {**os.environ, **(environ or {})}
        self._command = [*within, sys.executable, "-m", *program]
        self._command += ["--data", str(directory / "data"), "--listen", listen]
        self._command += [*workers.FLAGS, *flags]
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> ServerProcess:
        """Starts it and waits until it answers."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                env=self._environ,
            )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        assert ready.startswith("resultd ready on "), self.log()
        self.address = ready.split()[-1]
        return self

    @property
    def process(self) -> subprocess.Popen[str]:
        """The process under way."""
        assert self._process is not None, "not started"
        return self._process

    def log(self) -> str:
        """All it has logged."""
        return self._log.read_text()

    def log_bytes(self) -> int:
        """How much it has logged."""
        return self._log.stat().st_size

    def log_lines(self, since_bytes: int = 0) -> list[dict[str, Any]]:
        """What it has logged, line by line; a line that is not ours fails the test.

        Not one that is still being written: whoever reads a file may meet half of a write.
        """
        with self._log.open() as log:
            log.seek(since_bytes)
            return [json.loads(line) for line in log if line.endswith("\n")]

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Waits until it has ended; the exit code."""
        code = self.process.wait(STOP_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def stop(self) -> int:
        """SIGTERM, and waits."""
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL: no word to anybody."""
        self.send(signal.SIGKILL)
        self.wait()

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.stop()
