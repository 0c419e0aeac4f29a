"""Whose call it is: the namespace, from the metadata `resultd-namespace`."""

from __future__ import annotations

from resultd_server.errors import FieldInvalid
from resultd_server.interceptors import Context
from resultd_server.service import validate

NAMESPACE_KEY = "resultd-namespace"


def namespace_of(context: Context) -> str:
    """The call's namespace. Raises FieldInvalid."""
    found: str | None = None
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_KEY:
            if found is not None:
                raise FieldInvalid(NAMESPACE_KEY, "is said twice", "say it once")
            found = value if isinstance(value, str) else value.decode("ascii", "replace")
    return "default" if found is None else validate.namespace(found)
