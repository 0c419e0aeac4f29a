"""A server to which a commit is stuck after half a second. `python -m …`."""

from __future__ import annotations

import runpy

from resultd_server import limits

limits.WRITER_STUCK_S = 0.5
limits.WRITER_LOOK_S = 0.05
runpy.run_module("resultd_server", run_name="__main__")
