"""A server that logs every refusal, however many there are. `python -m …`, with its flags."""

from __future__ import annotations

import runpy

from resultd_server import log_rate

log_rate.LINES_PER_SECOND = 1_000_000
runpy.run_module("resultd_server", run_name="__main__")
