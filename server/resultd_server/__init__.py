"""The resultd server."""

import os
import sys

# gRPC's core has a log of its own: several lines a call that somebody gets wrong, and what a peer
# sent as it is. Looked at when grpc is imported; whoever wants it sets the variable.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# structlog loads rich where it is installed, a tenth of a start, for tracebacks that `logs` has
# plain. Whoever has it loaded already keeps it; whoever asks for it afterwards gets it.
if "rich" not in sys.modules:
    sys.modules["rich"] = None  # type: ignore[assignment]  # as the import system has it
    try:
        import structlog  # noqa: F401  now, while rich cannot be found
    finally:
        del sys.modules["rich"]
