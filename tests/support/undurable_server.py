"""A planted fault: a server whose journal is not waited for. `python -m …`, with its flags."""

from __future__ import annotations

import os
import runpy

from resultd_server.engine import journal

journal.FLAGS &= ~os.O_DSYNC
runpy.run_module("resultd_server", run_name="__main__")
