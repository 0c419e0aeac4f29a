"""Whose call it is."""

from __future__ import annotations

from typing import Any

import pytest

from resultd_server.errors import FieldInvalid
from resultd_server.interceptors.auth import namespace_of


class Context:
    """A call's metadata."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Any:
        """What came with the call; None if nothing did."""
        return self._metadata or None


def said(*values: str | bytes) -> str:
    """The namespace of a call that says these."""
    pairs = [("resultd-namespace", value) for value in values]
    return namespace_of(Context(("other", "x"), *pairs))  # type: ignore[arg-type]  # a part of one


def test_who_says_nothing_is_in_the_default_namespace() -> None:
    """No metadata, or an empty value, means "default"."""
    assert namespace_of(Context()) == "default"  # type: ignore[arg-type]  # a part of one
    assert said() == "default"
    assert said("") == "default"


@pytest.mark.parametrize("name", ["a", "0", "team-1", "a.b_c-d", "x" * 64])
def test_a_namespace_is_taken_as_it_is_said(name: str) -> None:
    """1 to 64 of a-z 0-9 . _ -, beginning with a letter or digit, bytes or text."""
    assert said(name) == name
    assert said(name.encode()) == name


@pytest.mark.parametrize("name", ["A", "-a", "_a", "a b", "x" * 65, "a\n", b"\xff"])
def test_another_name_is_refused(name: str | bytes) -> None:
    """Anything else is FIELD_INVALID."""
    with pytest.raises(FieldInvalid, match="resultd-namespace is not a namespace"):
        said(name)


def test_two_namespaces_are_refused() -> None:
    """A call is in one namespace: two are refused, even if they agree."""
    with pytest.raises(FieldInvalid, match="said twice"):
        said("a", "a")
