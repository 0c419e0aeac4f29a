"""The resultd server."""
