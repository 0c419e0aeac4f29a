"""The workers: processes that get files by pipe and report to the server, not to us."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

STOP_SECONDS_MAX = 5.0


class Worker(NamedTuple):
    """A worker process."""

    name: str
    process: subprocess.Popen[str]
    log: Path


class Crew:
    """Hands out tasks, the next one to whoever is free; what a dead worker held goes back."""

    def __init__(self, tasks: Sequence[Mapping[str, Any]], scratch: Path) -> None:
        self._tasks: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        for task in tasks:
            self._tasks.put(task)
        self._scratch = scratch
        self._lock = threading.Lock()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self.workers: list[Worker] = []
        self.dead: list[str] = []

    def hire_python(self, url: str, name: str) -> Worker:
        """Start a worker in Python."""
        return self.hire([sys.executable, "-m", "resultd.cli.demo.worker", url, name], name)

    def hire(
        self, command: Sequence[str], name: str, environment: Mapping[str, str] | None = None
    ) -> Worker:
        """Start a worker."""
        log = self._scratch / f"{name}.log"
        with self._lock:
            if self._closed:
                raise RuntimeError("the crew has gone home")
            with log.open("w") as errors:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=None if environment is None else dict(environment),
                    text=True,
                )
            worker = Worker(name, process, log)
            self.workers.append(worker)
        thread = threading.Thread(target=self._feed, args=(worker,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return worker

    def _feed(self, worker: Worker) -> None:
        assert worker.process.stdin is not None
        assert worker.process.stdout is not None
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return
            try:
                worker.process.stdin.write(json.dumps(task) + "\n")
                worker.process.stdin.flush()
                answer = worker.process.stdout.readline()
            except (BrokenPipeError, ValueError):  # ValueError: closed while we were at it
                answer = ""
            if not answer:
                self._tasks.put(task)
                if not self._closed:
                    self.dead.append(self._last_words(worker))
                return

    @staticmethod
    def _last_words(worker: Worker) -> str:
        lines = worker.log.read_text(errors="replace").strip().splitlines()
        errors = [line for line in lines if "Error" in line] or lines
        return f"{worker.name} ended: {errors[-1] if errors else 'it did not say why'}"

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._closed = True
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            _end(worker.process)
        for thread in self._threads:
            thread.join(STOP_SECONDS_MAX)
        for worker in self.workers:
            for pipe in (worker.process.stdin, worker.process.stdout):
                if pipe is not None:
                    _close(pipe)


def _end(process: subprocess.Popen[str]) -> None:
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        pass  # what was still to be written has no reader any more
