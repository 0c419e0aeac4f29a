"""Laws of the connection a command makes."""

from __future__ import annotations

import pytest

from resultd.cli.options import REACH_SECONDS, CommandError, connect


@pytest.mark.parametrize(
    ("url", "timeout"),
    [
        ("resultd://h", REACH_SECONDS),
        ("resultds://h?token=x", REACH_SECONDS),
        ("resultd://h?timeout=7", 7),
        ("resultd://h?attempt_timeout=2", REACH_SECONDS),
        ("resultds://h?token_file=/run/timeout=9", REACH_SECONDS),
        ("resultd://h?attempt_timeout=2&timeout=7", 7),
    ],
)
def test_a_person_waits_a_few_seconds_unless_the_address_says_more(
    url: str, timeout: float
) -> None:
    """A command gives up on an unreachable server soon; the address may say otherwise."""
    with connect(url) as client:
        assert client.url.timeout == timeout


@pytest.mark.parametrize(
    ("url", "said"),
    [("x", "begins with"), ("resultd://[::1", "Invalid IPv6"), ("resultd://h?timeout=", "seconds")],
)
def test_a_bad_address_is_a_command_error(url: str, said: str) -> None:
    """An address that is none is refused before anything is opened."""
    with pytest.raises(CommandError, match=said), connect(url):
        pass
