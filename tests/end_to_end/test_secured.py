"""Everything on: TLS, client certificates and tokens, through every way of using the client."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

import resultd
import resultd.aio
from resultd import errors
from tests.support import workers
from tests.support.access import AuthFile, put
from tests.support.server_process import ServerProcess

COMMAND = (str(Path(sys.executable).with_name("resultd")),)


class Secured:
    """A server with everything on, and one of its tenants."""

    def __init__(self, directory: Path) -> None:
        ca = trustme.CA()
        ca.cert_pem.write_to_path(directory / "ca.pem")
        pair = put(ca.issue_cert("localhost"), directory)
        self.auth = AuthFile(directory)
        self.token = self.auth.add("tenant", mine="admin")
        self.token_file = directory / "token"
        self.token_file.write_text(self.token)
        mine = put(ca.issue_cert("tenant.example.org"), directory, "tenant")
        self.server = ServerProcess(
            directory,
            *("--tls-cert", str(pair.chain), "--tls-key", str(pair.key)),
            *("--tls-client-ca", str(directory / "ca.pem")),
            *("--auth-file", str(self.auth.path)),
        )
        self.query = f"ca={directory}/ca.pem&cert={mine.chain}&key={mine.key}"

    def url(self, namespace: str = "mine", more: str = "") -> str:
        """The address, for the tenant."""
        host = self.server.address.replace("127.0.0.1", "localhost")
        return f"resultds://{host}/{namespace}?{self.query}{more}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One for the module; after it, no token stands in its log."""
    made = Secured(tmp_path_factory.mktemp("secured"))
    with made.server:
        yield made
    assert made.token not in made.server.log()


def test_the_client_reports_and_waits(secured: Secured) -> None:
    """With the token in the address; another namespace is not reached."""
    with resultd.Client(secured.url(more=f"&token={secured.token}")) as client:
        client.store_result("sync", {"sum": 30})
        assert client.AsyncResult("sync").get(timeout=10) == {"sum": 30}
        assert secured.token not in repr(client)
    foreign = resultd.Client(secured.url("theirs", f"&token={secured.token}"))
    with foreign as client, pytest.raises(errors.PermissionDeniedError):
        client.AsyncResult("sync").get(timeout=10)


async def test_the_client_of_asyncio_does_too(secured: Secured) -> None:
    """With the token in a file."""
    url = secured.url(more=f"&token_file={secured.token_file}")
    async with resultd.aio.Client(url) as client:
        await client.store_result("aio", 1)
        assert await client.AsyncResult("aio").get(timeout=10) == 1


def test_celery_keeps_its_results_there(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token comes from the environment; the backend shows none."""
    celery = pytest.importorskip("celery")
    monkeypatch.setenv("RESULTD_TOKEN", secured.token)
    app = celery.Celery("secured", backend=secured.url())
    app.backend.store_result("celery", 5, "SUCCESS")
    assert app.AsyncResult("celery").get(timeout=10) == 5
    assert secured.token not in app.backend.as_uri()
    app.backend.client.close()


def test_the_command_line_reads_there(secured: Secured) -> None:
    """With the token from the environment; without it: one sentence, exit code 2."""
    with resultd.Client(secured.url(more=f"&token={secured.token}")) as client:
        client.store_result("cli", "seen")
    environment = {**os.environ, "RESULTD_URL": secured.url()}
    said = {**environment, "RESULTD_TOKEN_FILE": str(secured.token_file)}
    command = [*COMMAND, "get", "cli"]
    shown = subprocess.run(command, env=said, capture_output=True, text=True, timeout=30)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "seen" in shown.stdout
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("resultd: The credential is not known")


def test_a_client_that_trusts_another_authority_is_not_let_to_talk(
    secured: Secured, tmp_path: Path
) -> None:
    """Whoever the server is, if it is not ours the token does not go there."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    text = secured.url(more=f"&timeout=1&token={secured.token}")
    text = text.replace(f"ca={secured.auth.path.parent}/ca.pem", f"ca={tmp_path}/other.pem")
    with resultd.Client(text) as client, pytest.raises(errors.UnavailableError) as caught:
        client.store_result("t", 1)
    assert "ertificate" in str(caught.value)
    assert secured.token not in str(caught.value)


async def test_who_calls_without_tls_is_told_what_may_be_missing(secured: Secured) -> None:
    """gRPC says no more than that the socket was closed; both clients add which address to try."""
    plain = f"resultd://{secured.server.address}?timeout=1"
    with resultd.Client(plain) as client, pytest.raises(errors.UnavailableError) as caught:
        client.store_result("t", 1)
    assert "resultds://" in str(caught.value)
    async with resultd.aio.Client(plain) as client_aio:
        with pytest.raises(errors.UnavailableError, match="resultds://"):
            await client_aio.store_result("t", 1)


@pytest.mark.skipif(workers.WORKERS > 1, reason="several workers listen on TCP only")
def test_a_socket_of_this_host_asks_for_tokens_too(tmp_path: Path) -> None:
    """`resultd+unix://` with a token; without one nothing is told."""
    auth = AuthFile(tmp_path)
    token = auth.add("me", everywhere="worker")
    listen = f"unix:{tmp_path}/r.sock"
    with ServerProcess(tmp_path, "--auth-file", str(auth.path), listen=listen):
        text = f"resultd+unix://{tmp_path}/r.sock"
        with resultd.Client(f"{text}?token={token}") as client:
            client.store_result("t", 1)
            assert client.AsyncResult("t").get(timeout=10) == 1
        with resultd.Client(text) as client, pytest.raises(errors.AuthenticationError):
            client.AsyncResult("t").get(timeout=10)
