"""An error that only workers know: they import this when a task raises it, a test never does."""

from __future__ import annotations


class StrangeError(Exception):
    """An error of a module that is not loaded where it arrives."""
