"""Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from resultd.testing import Server
from tests.support.timing import TRIES

PROGRAM = """
import sys, time, resultd
client = resultd.Client({url!r})
try:
    {wait}
except KeyboardInterrupt:
    print("interrupted", time.monotonic(), flush=True)
"""

SAY = "print('waiting', flush=True); "
WAITS = {
    "get": SAY + "client.AsyncResult('never').get()",
    "get with a timeout": SAY + "client.AsyncResult('never').get(timeout=60)",
    "a set": SAY + "client.ResultSet([client.AsyncResult('never')]).get()",
    "a group": SAY + "list(client.group('never').iterate())",
    "nobody answers": (SAY + "resultd.Client('resultd://127.0.0.1:9').server_info()"),
}


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_a_wait_within_200_ms(server: Server, wait: str) -> None:
    """SIGINT on the main thread raises KeyboardInterrupt, and the process ends by itself."""
    # A busy machine delays a process by more: one of a few tries has to be quick.
    took = [interrupted_after(PROGRAM.format(url=server.url, wait=WAITS[wait]))]
    while took[-1] >= 0.2 and len(took) < TRIES:
        took.append(interrupted_after(PROGRAM.format(url=server.url, wait=WAITS[wait])))
    assert min(took) < 0.2


def interrupted_after(program: str) -> float:
    """Seconds from SIGINT to the program's KeyboardInterrupt, and a clean end."""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.5)  # so that it really waits
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    word, at = out.split()
    assert word == "interrupted"
    assert process.returncode == 0
    assert err == ""
    return float(at) - sent
