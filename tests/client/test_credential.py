"""The token that calls carry: where it comes from, and what becomes of one that is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import resultd
import resultd.aio
from resultd import _credential, _url, errors
from resultd._credential import Credential
from tests.support.access import AuthFile
from tests.support.server_process import ServerProcess

LONG_S = 20.0
"""More than a revocation takes; a wait that is refused does not last so long."""


class Guarded:
    """A server that goes by an auth file, and what its clients need."""

    def __init__(self, directory: Path) -> None:
        self.auth = AuthFile(directory)
        self.old, self.new = (self.auth.add(name, everywhere="admin") for name in ("old", "new"))
        self.file = directory / "token"
        self.file.write_text(f"{self.old}\n")
        self.server = ServerProcess(directory, "--auth-file", str(self.auth.path))

    def url(self, query: str = "") -> str:
        """Its address, for a client with a token file unless something else is said."""
        return f"resultd://{self.server.address}?{query or f'token_file={self.file}'}"

    def exchange(self) -> None:
        """The client's file gets the new token, and the old one is revoked."""
        self.file.write_text(self.new)
        self.auth.revoke("old")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    """A server of its own: its tokens come and go."""
    made = Guarded(tmp_path)
    with made.server:
        yield made
    for token in (made.old, made.new):
        assert token not in made.server.log()


def metadata(text: str) -> tuple[tuple[str, str], ...]:
    """What calls to an address carry."""
    return _credential.call_metadata(_url.parse(text))


def test_every_call_carries_namespace_and_token(tmp_path: Path) -> None:
    """As metadata; a token from the address, or from a file without the space around it."""
    expected = (("resultd-namespace", "ns"), ("authorization", "Bearer geheim"))
    assert metadata("resultds://h/ns?token=geheim") == expected
    (tmp_path / "token").write_text(" geheim\n")
    assert metadata(f"resultds://h/ns?token_file={tmp_path}/token") == expected
    assert metadata("resultd://h/ns") == expected[:1]


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\n",
        b"two words",
        b"two\nlines",
        b"\xff",
        b"\0",
        pytest.param(b"t" + b" " * _credential.FILE_BYTES_MAX, id="large"),
    ],
)
def test_a_token_file_without_a_token_is_said(tmp_path: Path, content: bytes | None) -> None:
    """With the file's name, not its contents; and it is final: no stream tries again."""
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(errors.AuthenticationError, match=f"the token file {file} ") as caught:
        metadata(f"resultds://h?token_file={file}")
    assert caught.value.final
    assert "two" not in str(caught.value)


def test_a_refused_token_is_tried_again_only_if_there_is_another(tmp_path: Path) -> None:
    """Once for each token: a file that stays ends the tries, and so does one that is gone."""
    file = tmp_path / "token"
    file.write_text("a")
    credential = Credential(_url.parse(f"resultds://h?token_file={file}"))
    credential.load()
    first = credential.metadata
    assert not credential.renew(first)
    file.write_text("b")
    assert credential.renew(first)
    assert credential.metadata != first
    assert credential.renew(first)  # another call that went out before
    assert not credential.renew(credential.metadata)
    file.unlink()
    assert not credential.renew(credential.metadata)
    assert not Credential(_url.parse("resultds://h?token=a")).renew(first)


def test_calls_go_on_with_the_new_token(guarded: Guarded) -> None:
    """A token is exchanged under calls and a wait: neither notices."""
    with resultd.Client(guarded.url()) as client:
        got: list[object] = []
        waiter = threading.Thread(
            target=lambda: got.append(client.AsyncResult("t").get(timeout=LONG_S))
        )
        waiter.start()
        client.store_result("other", 1)
        guarded.exchange()
        with resultd.Client(guarded.url(f"token={guarded.old}")) as revoked:
            refused = until_refused(revoked)
        assert refused.reason == "CREDENTIAL_INVALID"
        client.store_result("t", "there")
        waiter.join(LONG_S)
        assert got == ["there"]


def until_refused(client: resultd.Client) -> errors.AuthenticationError:
    """Reads until the token is refused."""
    try:
        while True:
            client.AsyncResult("other").exists()
    except errors.AuthenticationError as error:
        return error


async def test_calls_of_asyncio_go_on_with_the_new_token(guarded: Guarded) -> None:
    """The same, in a loop."""
    async with resultd.aio.Client(guarded.url()) as client:
        waiting = asyncio.create_task(client.AsyncResult("t").get(timeout=LONG_S))
        await client.store_result("other", 1)
        guarded.exchange()
        with resultd.Client(guarded.url(f"token={guarded.old}")) as revoked:
            await asyncio.to_thread(until_refused, revoked)
        await client.store_result("t", "there")
        assert await waiting == "there"


def test_a_wait_whose_token_is_revoked_ends(guarded: Guarded) -> None:
    """With the refusal, not with its timeout: there is no other token."""
    with resultd.Client(guarded.url(f"token={guarded.old}")) as client:
        result = client.AsyncResult("t")
        client.store_result("other", 1)
        timer = threading.Timer(0.5, guarded.auth.revoke, ["old"])
        timer.start()
        with pytest.raises(errors.AuthenticationError):
            result.get(timeout=LONG_S)
        timer.join()


@pytest.mark.parametrize("query", ["token=rsd_wrong", "token_file={file}.none", "timeout=20"])
def test_who_has_no_good_token_is_told_at_once(guarded: Guarded, query: str) -> None:
    """Calls and waits raise AuthenticationError: none is retried until its time is over."""
    text = guarded.url(query.format(file=guarded.file))
    with resultd.Client(text) as client:
        with pytest.raises(errors.AuthenticationError):
            client.store_result("t", 1)
        with pytest.raises(errors.AuthenticationError):
            client.AsyncResult("t").get(timeout=LONG_S)
        with pytest.raises(errors.AuthenticationError):
            next(client.group("g").iterate(timeout=LONG_S))


def test_who_may_not_is_told_at_once(guarded: Guarded) -> None:
    """PermissionDeniedError, with what lacks, for a call and for a wait."""
    reader = guarded.auth.add("reader", mine="reader")
    with resultd.Client(guarded.url(f"token={guarded.new}")) as admin:
        while not let_in(guarded, reader):
            admin.store_result("other", 1)
    text = guarded.url(f"token={reader}").replace("?", "/mine?")
    with resultd.Client(text) as client, pytest.raises(errors.PermissionDeniedError) as caught:
        client.store_result("t", 1)
    assert caught.value.metadata["needed"] == "worker"
    foreign = guarded.url(f"token={reader}").replace("?", "/theirs?")
    with resultd.Client(foreign) as client, pytest.raises(errors.PermissionDeniedError):
        client.AsyncResult("t").get(timeout=LONG_S)


def let_in(guarded: Guarded, token: str) -> bool:
    """Whether the server knows a token by now."""
    with resultd.Client(guarded.url(f"token={token}").replace("?", "/mine?")) as client:
        try:
            return not client.AsyncResult("t").exists()
        except errors.AuthenticationError:
            return False
