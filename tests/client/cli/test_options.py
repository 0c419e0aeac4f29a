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
    ],
)
def test_a_person_waits_a_few_seconds_unless_the_address_says_more(
    url: str, timeout: float
) -> None:
    """A command gives up on an unreachable server soon; the address may say otherwise."""
    with connect(url) as client:
        assert client.url.timeout == timeout


def test_a_bad_address_is_a_command_error() -> None:
    """An address that is none is refused before anything is opened."""
    with pytest.raises(CommandError, match="begins with"), connect("x"):
        pass
