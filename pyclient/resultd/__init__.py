"""resultd: store a task's result anywhere, have it stream to whoever waits."""
