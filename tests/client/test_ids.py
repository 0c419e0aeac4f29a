"""Which ids fit is what the server says of them."""

from __future__ import annotations

import pytest

from resultd import _ids
from resultd_server.errors import FieldInvalid
from resultd_server.service import validate


def taken(id_: str) -> bool:
    """Whether the server takes it. One with half a surrogate cannot even be sent."""
    try:
        id_.encode()
        validate.id_("task_id", id_)
    except (FieldInvalid, UnicodeEncodeError):
        return False
    return True


@pytest.mark.parametrize(
    ("id_", "fits"),
    [
        ("a", True),
        ("", False),
        ("a" * 255, True),
        ("a" * 256, False),
        ("ä" * 127 + "a", True),
        ("ä" * 128, False),
        ("a b", True),
        ("a\nb", False),
        ("a\x7f", False),
        ("ä\x85", False),
        ("\ud800", False),
        ("\u200b", True),
    ],
)
def test_what_fits_is_what_the_server_takes(id_: str, fits: bool) -> None:
    """By length in bytes, and by what it is made of."""
    assert (_ids.fits(id_), taken(id_)) == (fits, fits)
