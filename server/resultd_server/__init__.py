"""The resultd server."""

import os

# gRPC's core has a log of its own: several lines a call that somebody gets wrong, and what a peer
# sent as it is. Looked at when grpc is imported; whoever wants it sets the variable.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
