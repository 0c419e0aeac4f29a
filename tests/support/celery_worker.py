"""A real Celery worker in a process of its own.

with CeleryWorker(tmp_path, broker=redis_server.url, backend=server.url) as worker:
    create_app(broker, backend).tasks["add"].delay(1, 2).get(timeout=10)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
APP = "tests.support.celery_app"
START_S = 30.0
STOP_S = 10.0
LOG_CHARS_MAX = 20_000

_READY = re.compile(r"celery@\S+ ready\.|\S+@\S+ ready\.")

#: Those under way, for `add_log_sections`.
_running: list[CeleryWorker] = []


class CeleryWorker:
    """`python -m celery -A … worker` in a process group of its own; what it logs is kept.

    Args:
        directory: where its log goes.
        broker, backend: the URLs it is told by its environment.
        app: the module the app lies in.
        pool, concurrency: as Celery's -P and -c.
        settings: Celery settings; what JSON can say.
        options: more of the worker's command line.
        environment: added to this process's own.
        name: the first half of its node name, and of its log file's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        broker: str,
        backend: str,
        app: str = APP,
        pool: str = "prefork",
        concurrency: int = 2,
        settings: Mapping[str, Any] | None = None,
        options: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        name: str = "worker",
    ) -> None:
        self.name = name
        self.node = f"{name}@localhost"
        self.log_path = directory / f"{name}.log"
        self._command = [sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO"]
        self._command += ["-P", pool, "-c", str(concurrency), "-n", self.node]
        # Neither is of use to one worker; mingle alone makes every start a second longer.
        self._command += ["--without-mingle", "--without-gossip", *options]
        self._environment = {
            **os.environ,
            "TESTS_CELERY_BROKER": broker,
            "TESTS_CELERY_RESULTS": backend,
            "TESTS_CELERY_SETTINGS": json.dumps(dict(settings or {})),
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._shown = 0

    @property
    def pid(self) -> int:
        """The worker's main process, and its process group."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether its main process runs."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """All it has logged."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> CeleryWorker:
        """Starts it and waits until it says that it takes tasks."""
        began = len(self.log())
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that `kill` reaches the children too
            )
        _running.append(self)
        try:
            self._await_ready(self._process, began)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> int:
        """SIGTERM: it finishes what it runs; SIGKILL after a while. Its exit code."""
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return process.returncode or -signal.SIGKILL
        finally:
            self.kill()  # whatever child outlived it

    def kill(self) -> None:
        """SIGKILL to it and its children: no word to anybody."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if self in _running:
            _running.remove(self)

    def new_log(self) -> str:
        """What it has logged since this was asked last."""
        text = self.log()
        new, self._shown = text[self._shown :], len(text)
        return new[-LOG_CHARS_MAX:]

    def __enter__(self) -> CeleryWorker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _await_ready(self, process: subprocess.Popen[bytes], began: int) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and process.poll() is None:
            if _READY.search(self.log(), began):
                return
            time.sleep(0.02)
        raise AssertionError(f"the worker was not ready in {START_S:g} s\n{self.new_log()}")


def add_log_sections(report: Any) -> None:
    """Shows what the workers logged during a test beside the failure of that test.

    To be called with every report of pytest's hook `pytest_runtest_makereport`.
    """
    for worker in _running:
        if report.failed:
            report.sections.append((f"log of {worker.name}", worker.new_log()))
        elif report.when == "teardown":
            worker.new_log()
