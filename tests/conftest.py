"""What every test gets."""

from __future__ import annotations

from hypothesis import settings

# No deadline per example: on a busy machine it finds slow minutes, not slow code.
# The blob lets a failure seen elsewhere be repeated here.
settings.register_profile("resultd", deadline=None, print_blob=True)
settings.load_profile("resultd")
