"""A real gunicorn in front of `tests.support.celery_wsgi`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_S = 20.0
STOP_S = 10.0

_LISTENING = re.compile(r"Listening at: (http://\S+)")


class Gunicorn:
    """Starts with the block, is gone with its workers after it; what it logs is kept."""

    def __init__(self, directory: Path, *options: str, environment: Mapping[str, str]) -> None:
        self._log = directory / "gunicorn.log"
        self._command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", *options]
        self._command += ["--no-control-socket", "tests.support.celery_wsgi:application"]
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def log(self) -> str:
        """All it has logged."""
        return self._log.read_text(errors="replace")

    def get(self) -> dict[str, Any]:
        """Makes a request."""
        with urllib.request.urlopen(self.url, timeout=15) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def stop(self) -> int:
        """SIGTERM, and waits; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(STOP_S)

    def __enter__(self) -> Gunicorn:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + START_S
        while not (found := _LISTENING.search(self.log())):
            if time.monotonic() > end or self._process.poll() is not None:
                self.__exit__()
                raise AssertionError(f"gunicorn does not listen\n{self.log()}")
            time.sleep(0.02)
        self.url = found[1]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # whatever outlived a failed test
        self._process.wait()
