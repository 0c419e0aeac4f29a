"""Programs that are measured in processes of their own: they take orders, a line of JSON each.

An order names a method of the program and its arguments; the answer is a line of JSON.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

#: Part of what another process measures. To look for garbage after it would keep one of few
#: cores busy for 10 ms while what was stored is on its way.
STORE_ONE = "store_one"


class Partner:
    """A process that takes orders."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def ask(self, method: str, *arguments: Any) -> dict[str, float]:
        """Gives an order and waits for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self.line())
        return answer

    def line(self) -> str:
        """The next line; raises RuntimeError where the process ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a program that was measured ended with {self._process.wait()}")
        return line


@contextlib.contextmanager
def partner(module: str, *arguments: str) -> Iterator[Partner]:
    """Starts one, and waits until it is ready."""
    command = [sys.executable, "-m", module, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            started = Partner(process)
            started.line()
            yield started
        finally:
            process.kill()


def take_orders(program: object) -> None:
    """The other side: obeys until there are no more orders, and ends the process."""
    print("ready", flush=True)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(program, method)(*arguments)), flush=True)
        if method != STORE_ONE:
            gc.collect()
    os._exit(0)  # nothing is to be taken down one by one: results of a Redis backend are
