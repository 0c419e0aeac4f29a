"""TEST_WORKERS=2 runs the servers that tests start with so many processes."""

from __future__ import annotations

import os

WORKERS = int(os.environ.get("TEST_WORKERS", "1"))
FLAGS = ("--workers", str(WORKERS)) if WORKERS > 1 else ()
#: Several processes share a store on disk.
ENGINE = "lmdb" if WORKERS > 1 else "memory"
