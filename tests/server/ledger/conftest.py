"""Every engine in turn, for the tests of this directory."""

from __future__ import annotations

from tests.support.stores import clock, store

__all__ = ["clock", "store"]
