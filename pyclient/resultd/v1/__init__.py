"""Generated messages and service stubs of the protocol `resultd.v1`."""
