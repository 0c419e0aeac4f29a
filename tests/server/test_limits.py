"""Every bound, and that the bounds fit one another."""

from __future__ import annotations

from resultd_server import limits


def test_the_limits_told_are_the_limits_kept() -> None:
    """What GetServerInfo names has the name and the value of the bound itself."""
    for name, value in limits.advertised().items():
        assert getattr(limits, name.upper()) == value


def test_every_record_fits_a_frame_and_every_frame_a_client() -> None:
    """A frame of one full record, its keys beside it, stays under what a client receives."""
    assert limits.RECORD_BYTES_MAX + limits.METADATA_BYTES_MAX < limits.RESPONSE_BYTES_MAX
    assert limits.FRAME_BYTES <= limits.RECORD_BYTES_MAX
    assert limits.RESPONSE_BYTES_MAX < 4 * limits.MIB
    assert limits.RECORD_BYTES_MAX < limits.REQUEST_BYTES_MAX < limits.WRITES_QUEUED_BYTES_MAX


def test_a_page_of_members_fits_an_answer() -> None:
    """The largest page of members with the longest ids stays under the limit of an answer."""
    row_bytes = limits.ID_BYTES_MAX + 32
    assert limits.MEMBERS_PAGE_MAX * row_bytes < limits.RESPONSE_BYTES_MAX
