"""Every bound, and that the bounds fit one another."""

from __future__ import annotations

import ast

import pytest

from resultd import _operations
from resultd_server import limits
from tests.support.request_fields import edges
from tests.tooling.repository import ROOT

FIELDS = {edge.bound.constant for edge in edges()}
"""What bounds a field of a request: `tests/faults/test_limits.py` has four points of each."""

TESTED = {
    # At L-1, L, L+1 and 10 L.
    "NAMESPACE_BYTES_MAX": "faults/test_limits.py::test_a_namespace_is_bounded_on_every_rpc",
    "RECORD_BYTES_MAX": "faults/test_limits.py::test_a_record_is_bounded_as_it_is_read",
    "TRACEBACK_BYTES_MAX": "faults/test_limits.py::test_a_traceback_is_cut_beyond_its_limit",
    "WATCHED_IDS_PER_STREAM": "faults/test_limits.py::test_the_ids_of_a_stream_are_bounded",
    "WATCHED_GROUPS_PER_STREAM": "faults/test_limits.py::test_the_groups_of_a_stream_are_bounded",
    "ELEMENTS_PER_REQUEST": (
        "server/service/test_elements.py::test_the_elements_of_a_request_are_bounded"
    ),
    "COMMIT_WORK_US": ("server/engine/test_lmdb.py::test_what_is_much_work_takes_several_commits"),
    "GROUPS_PER_MEMBER": "faults/test_limits.py::test_the_groups_of_a_member_are_bounded",
    "MEMBER_PLACES_MAX": (
        "server/ledger/test_memberships.py::test_places_in_groups_that_are_over_are_bounded"
    ),
    "GROUP_DEPTH_MAX": "faults/test_limits.py::test_groups_nest_so_deep_and_no_deeper",
    "REQUEST_BYTES_MAX": "faults/test_connection_limits.py::test_a_request_has_a_limit",
    "METADATA_BYTES_MAX": (
        "faults/test_connection_limits.py::test_metadata_has_a_limit_and_no_range_of_chance"
    ),
    "STREAMS_PER_CONNECTION": (
        "faults/test_connection_limits.py::test_a_connection_has_so_many_streams"
    ),
    "CONNECTIONS_MAX": "faults/test_connection_limits.py::test_a_server_has_so_many_connections",
    "STREAMS_MAX": (
        "server/interceptors/test_limits.py::test_streams_beyond_the_bound_are_refused"
    ),
    "CALLS_MAX": (
        "server/interceptors/test_limits.py::test_calls_beyond_their_number_are_sent_away"
    ),
    "CALLS_BYTES_MAX": (
        "server/interceptors/test_limits.py::test_the_bytes_of_calls_are_counted_together"
    ),
    "SETTING_FILE_BYTES_MAX": "server/test_config.py::test_a_file_that_is_named_is_bounded",
    "MEMORY_LEAST_BYTES": "server/test_config.py::test_a_process_needs_some_memory",
    "HEALTH_REQUEST_BYTES_MAX": "server/service/test_health.py::test_a_request_is_bounded",
    "HEALTH_WATCHES_MAX": (
        "server/service/test_health.py::test_watches_beyond_the_bound_are_refused"
    ),
    "REFLECTIONS_MAX": (
        "server/service/test_reflection.py::test_streams_beyond_the_bound_are_refused"
    ),
    "WRITES_QUEUED_MAX": "server/engine/test_lmdb.py::test_the_queue_of_writes_is_bounded",
    "WRITES_QUEUED_BYTES_MAX": (
        "server/engine/test_lmdb.py::test_the_bytes_of_queued_writes_are_bounded"
    ),
    "GROUP_PARENTS_VISITED": "server/ledger/test_nesting.py::test_the_search_upwards_is_bounded",
    "ADMIN_CONNECTIONS_MAX": "server/test_admin.py::test_who_says_nothing_keeps_nobody_out",
    "ADMIN_REQUEST_BYTES_MAX": "server/test_admin.py::test_a_head_has_a_limit",
    # Beyond the limit and within it: times.
    "ADMIN_EXCHANGE_S": "server/test_admin.py::test_who_says_nothing_is_let_go",
    "HANDSHAKE_TIMEOUT_S": "faults/test_hostile.py::test_who_does_not_speak_http2_is_closed_soon",
    "KEEPALIVE_TIMEOUT_S": (
        "faults/test_connection_limits.py::test_who_does_not_acknowledge_the_limits_is_closed"
    ),
    "CONNECTION_IDLE_S": "faults/test_hostile.py::test_a_connection_without_calls_is_closed",
    "CONNECTION_AGE_S": (
        "faults/test_hostile.py::test_a_call_that_never_ends_ends_with_its_connection"
    ),
    "CONNECTION_GRACE_S": (
        "faults/test_hostile.py::test_a_call_that_never_ends_ends_with_its_connection"
    ),
    "REQUEST_S": "server/test_acceptance.py::test_a_request_has_so_long_to_come",
    "REFLECTION_S": "server/service/test_reflection.py::test_a_stream_that_is_old_ends",
    "STREAM_AGE_S": "server/service/test_streams.py::test_a_stream_that_is_old_ends_with_max_age",
    "STALLED_WRITE_S": (
        "server/service/test_streams.py::test_a_stalled_stream_is_dropped_and_told_so"
    ),
    # Of answers: what is more comes in the next page, frame or answer.
    "READ_BYTES_MAX": "server/ledger/test_listing.py::test_steps_are_bounded_in_bytes",
    "LARGE_ANSWERS_MAX": (
        "server/interceptors/test_answers.py::test_so_many_are_on_their_way_to_a_connection"
    ),
    "LARGE_ANSWERS_WAIT_S": (
        "server/interceptors/test_answers.py::test_who_waits_too_long_goes_on"
    ),
    "RESPONSE_BYTES_MAX": "server/ledger/test_listing.py::test_pages_are_bounded_in_bytes",
    "FRAME_TASKS_MAX": "server/core/test_tasks.py::test_frames_are_bounded",
    "FRAME_BYTES": "server/core/test_tasks.py::test_frames_are_bounded_in_bytes",
    "COMPLETE_GROUPS_PER_ANSWER": (
        "server/service/test_results.py::"
        "test_a_batch_whose_answer_would_be_too_large_omits_groups_and_says_so"
    ),
    "CLAIMABLE_PER_ANSWER": (
        "server/ledger/test_claims.py::test_the_claimable_groups_of_an_answer_are_bounded"
    ),
    "CLAIMABLE_SCANNED": (
        "server/ledger/test_claims.py::test_the_search_for_claimable_groups_is_bounded"
    ),
    "READ_ROWS_MAX": "server/ledger/test_listing.py::test_steps_are_bounded_in_rows",
    "NAMESPACES_MAX": (
        "server/ledger/test_namespaces.py::test_the_namespaces_of_a_store_are_bounded"
    ),
    "SWEEP_ROWS": "server/ledger/test_expiry.py::test_looking_again_at_what_is_kept_is_bounded",
    "TOTAL_REQUESTS_REMEMBERED": (
        "server/ledger/test_groups.py::test_requests_of_totals_are_remembered_so_far"
    ),
}
"""What bounds requests otherwise, or what the server does for them, and the test that shows it."""

NOBODYS = {
    "units": ("KIB", "MIB", "SECOND_MS"),
    "what holds where nobody says": (
        *("TTL_DEFAULT_MS", "LEASE_DEFAULT_MS", "HEARTBEAT_DEFAULT_S"),
    ),
    "how long the server remembers": ("TOMBSTONE_MS", "REVOCATION_MS"),
    "the server's own pace": (
        *("FRAME_EVENTS_MAX", "STREAM_AGE_JITTER", "KEEPALIVE_S", "DESCRIPTORS_KEPT"),
        *("FAREWELL_S", "ADMIN_FETCH_S", "WRITER_STUCK_S", "WRITER_LOOK_S"),
        "COMMIT_OPERATIONS_MAX",
    ),
}
"""What no request can be beyond."""


def test_no_limit_is_forgotten() -> None:
    """Every constant bounds a field of the generated table, has its test, or bounds no request."""
    every = {name for name in vars(limits) if name.isupper()}
    nobodys = {name for names in NOBODYS.values() for name in names}
    assert every - FIELDS - TESTED.keys() - nobodys == set()
    assert (FIELDS | TESTED.keys() | nobodys) - every == set()
    assert not FIELDS & (TESTED.keys() | nobodys)
    assert not TESTED.keys() & nobodys


@pytest.mark.parametrize("name", TESTED)
def test_the_test_of_a_limit_is_there(name: str) -> None:
    """Each test that is named exists."""
    path, _, test = TESTED[name].partition("::")
    tree = ast.parse((ROOT / "tests" / path).read_text())
    assert test in {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


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


def test_what_a_request_may_have_in_one_list_it_may_have_in_all() -> None:
    """The bound of all lists together leaves room for the largest of each, on one stream too."""
    watched = 3 * limits.IDS_PER_CALL + limits.WATCHED_GROUPS_PER_MESSAGE
    described = limits.CHILDREN_MAX + limits.LABELS_MAX + limits.EXTRA_MAX
    assert max(watched, described) < limits.ELEMENTS_PER_REQUEST
    assert limits.ELEMENTS_PER_REQUEST == _operations.ELEMENTS_PER_CALL


def test_a_page_of_members_fits_an_answer() -> None:
    """The largest page of members with the longest ids stays under the limit of an answer."""
    row_bytes = limits.ID_BYTES_MAX + 32
    assert limits.MEMBERS_PAGE_MAX * row_bytes < limits.RESPONSE_BYTES_MAX
