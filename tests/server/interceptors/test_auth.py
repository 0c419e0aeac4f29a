"""Whose call it is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from resultd_server.access import tokens
from resultd_server.access.authority import Authority
from resultd_server.errors import (
    CredentialExpired,
    CredentialInvalid,
    CredentialMissing,
    FieldInvalid,
    NamespaceDenied,
    RoleInsufficient,
)
from resultd_server.interceptors.auth import Gate, OpenDoor, namespace_of
from tests.support.in_process import until


class Context:
    """A call's metadata."""

    def __init__(self, *metadata: tuple[str, str | bytes]) -> None:
        self._metadata = metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        """What TLS knows: nothing."""
        return {}

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


NOW_S = 1_000.0
TOKEN = tokens.PREFIX + "t" * 43


def gate(directory: Path, expires: str = "") -> Gate:
    """One that lets TOKEN in, at NOW_S."""
    file = directory / "auth.toml"
    file.write_text(
        f"[[tokens]]\nname = 'me'\nsha256 = '{tokens.hash_of(TOKEN)}'\n"
        f"roles = {{ default = 'reader' }}\n{expires}"
    )
    authority = Authority(file)
    authority.take(authority.read())
    return Gate(authority, lambda: NOW_S)


READ, STORE = (f"resultd.v1.ResultService.{name}" for name in ("GetResult", "StoreResult"))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_written_as_one_likes(tmp_path: Path, scheme: str) -> None:
    """Its case does not matter, nor does space around the token."""
    identify = gate(tmp_path).identify(READ)
    for value in (f"{scheme} {TOKEN}", f"{scheme}  {TOKEN} "):
        assert identify(Context(("authorization", value))) == "default"  # type: ignore[arg-type]  # a part of one


@pytest.mark.parametrize(
    "values",
    [
        (TOKEN,),
        (f"Basic {TOKEN}",),
        ("Bearer",),
        ("Bearer ",),
        ("",),
        (f"Bearer {TOKEN} {TOKEN}",),
        (f"Bearer {TOKEN},Bearer {TOKEN}",),
        (f"Bearer {TOKEN}", f"Bearer {TOKEN}"),
        ("Bearer rsd_other", f"Bearer {TOKEN}"),
        (b"Bearer \xff",),
    ],
    ids=repr,
)
def test_a_credential_is_one_and_whole(tmp_path: Path, values: tuple[str | bytes, ...]) -> None:
    """Another scheme, none, two at once, or more behind it: invalid, whatever is among it."""
    said = Context(*(("authorization", value) for value in values))
    with pytest.raises(CredentialInvalid):
        gate(tmp_path).identify(READ)(said)  # type: ignore[arg-type]  # a part of one


def test_who_is_asked_first(tmp_path: Path) -> None:
    """The credential, then its time, then the namespace's name, its reach, and the role."""
    good = ("authorization", f"Bearer {TOKEN}")
    odd, other = ("resultd-namespace", "A B"), ("resultd-namespace", "other")
    late = "expires = 1970-01-01T00:16:40Z"  # NOW_S
    for said, expires, method, refusal in (
        ((odd,), "", STORE, CredentialMissing),
        ((("authorization", "Bearer x"), odd), "", STORE, CredentialInvalid),
        ((good, odd), late, STORE, CredentialExpired),
        ((good, odd), "", STORE, FieldInvalid),
        ((good, other), "", STORE, NamespaceDenied),
        ((good,), "", STORE, RoleInsufficient),
    ):
        with pytest.raises(refusal):
            gate(tmp_path, expires).identify(method)(Context(*said))  # type: ignore[arg-type]  # a part of one


async def test_what_broke_amid_a_change_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that breaks while it looks at streams leaves the change to the next one."""
    monkeypatch.setattr("resultd_server.interceptors.auth.CHECK_S", 0.001)
    made, changed = gate(tmp_path), asyncio.Event()
    looks: list[int] = []

    async def recheck() -> None:
        looks.append(1)
        if len(looks) == 1:
            raise ZeroDivisionError

    monkeypatch.setattr(made, "recheck", recheck)
    changed.set()
    with pytest.raises(ZeroDivisionError):
        await made.watch(changed)
    again = asyncio.ensure_future(made.watch(changed))
    await until(lambda: len(looks) == 2)
    assert not changed.is_set()
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)


def test_an_rpc_without_a_role_is_not_served(tmp_path: Path) -> None:
    """The server does not start with one: nobody decided who may call it."""
    for wrap in (gate(tmp_path).identify, lambda name: gate(tmp_path).hold(name, handler)):
        with pytest.raises(KeyError):
            wrap("resultd.v1.ResultService.New")


async def handler(raw: Any, context: Any) -> bytes:
    """Any."""
    return b""


def test_without_an_auth_file_nothing_stands_between() -> None:
    """An open door asks for no credential and wraps nothing."""
    assert OpenDoor().identify(STORE) is namespace_of
    assert OpenDoor().hold(STORE, handler) is handler
