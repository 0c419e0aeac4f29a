"""Laws of `health`."""

from __future__ import annotations

import asyncio

import pytest

from resultd.cli import health
from tests.client.cli.conftest import Cli
from tests.client.cli.test_app import free_port
from tests.support.in_process import serving


@pytest.mark.parametrize("service", ["", "resultd.v1.ResultService", "resultd.v1.GroupService"])
def test_a_server_that_serves_is_exit_code_0(cli: Cli, service: str) -> None:
    """The whole server is asked after, or one service of it."""
    assert cli("health", "--service", service)[:2] == (0, "SERVING\n")


def test_a_service_that_is_not_there_is_exit_code_1(cli: Cli) -> None:
    """What the server does not know does not serve."""
    assert cli("health", "--service", "no.Such")[:2] == (1, "SERVICE_UNKNOWN\n")


async def test_a_server_that_drains_is_exit_code_1(cli: Cli) -> None:
    """It still answers, and says that it takes no calls."""
    async with serving() as served:
        for name in ("", "resultd.v1.WorkerService"):
            served.app._health.set(name, 2)
            url = f"resultd://{served.address}"
            ran = await asyncio.to_thread(cli, "health", "--service", name, url=url)
            assert ran[:2] == (health.EXIT_NOT_SERVING, "NOT_SERVING\n")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("resultd://127.0.0.1:PORT", "no server answers at resultd://127.0.0.1:"),
        ("http://127.0.0.1", "begins with resultd://"),
        ("resultds://127.0.0.1?ca=not-there.pem", "not-there.pem"),
    ],
)
def test_nobody_there_is_exit_code_2(cli: Cli, url: str, said: str) -> None:
    """No server, no address, no certificate: a sentence, and not the code of a server's no."""
    ran = cli("health", "--timeout", "5", url=url.replace("PORT", str(free_port())))
    assert ran.code == 2
    assert said in ran.err


@pytest.mark.parametrize("timeout", ["inf", "1e300", "9e9"])
def test_a_timeout_has_a_bound(cli: Cli, timeout: str) -> None:
    """A server that serves is not said to be gone for a time that gRPC cannot count."""
    ran = cli("health", "--timeout", timeout)
    assert ran.code == 2
    assert "--timeout" in ran.err
    assert cli("health", "--timeout", str(health.TIMEOUT_MAX_S))[:2] == (0, "SERVING\n")


def test_secrets_of_the_address_are_not_repeated(cli: Cli) -> None:
    """The token in an address stays out of what is printed."""
    ran = cli("health", url=f"resultd://127.0.0.1:{free_port()}?token=secret-word")
    assert "secret-word" not in ran.out + ran.err
