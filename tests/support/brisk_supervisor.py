"""A server whose workers have eight seconds to become ready. `python -m …`."""

from __future__ import annotations

import runpy

from resultd_server import supervisor

supervisor.READY_S = 8.0
runpy.run_module("resultd_server", run_name="__main__")
