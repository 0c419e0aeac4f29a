"""The one exception of this package's own."""

from __future__ import annotations

import celery.exceptions

from resultd import errors


class TimeoutError(celery.exceptions.TimeoutError, errors.TimeoutError):  # noqa: A001 (Celery's name)
    """The time given to a wait ran out.

    Celery's class, this package's and the builtin one: whichever a program catches.
    """
