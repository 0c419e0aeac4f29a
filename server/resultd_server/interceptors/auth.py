"""Whose call it is: the namespace, from the metadata `resultd-namespace`."""

from __future__ import annotations

import re

from resultd_server.errors import FieldInvalid
from resultd_server.interceptors import Context

NAMESPACE_KEY = "resultd-namespace"
_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def namespace(name: str) -> str:
    """A namespace from call metadata; "default" if there is none."""
    if not name:
        return "default"
    if not _NAMESPACE.fullmatch(name):
        raise FieldInvalid(
            "resultd-namespace",
            "is not a namespace",
            "use 1 to 64 of a-z, 0-9, dot, underscore and hyphen, beginning with a letter or digit",
        )
    return name


def namespace_of(context: Context) -> str:
    """The call's namespace. Raises FieldInvalid."""
    found: str | None = None
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_KEY:
            if found is not None:
                raise FieldInvalid(NAMESPACE_KEY, "is said twice", "say it once")
            found = value if isinstance(value, str) else value.decode("ascii", "replace")
    return "default" if found is None else namespace(found)
