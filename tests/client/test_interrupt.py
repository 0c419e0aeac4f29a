"""Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from resultd.testing import Server

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
    program = PROGRAM.format(url=server.url, wait=WAITS[wait])
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
    assert float(at) - sent < 0.2
    assert process.returncode == 0
    assert err == ""
