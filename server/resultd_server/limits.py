"""Every bound of the server, in one place, with its reason.

Units stand last in a name. What a client may ask about is in `advertised()`.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

ID_BYTES_MAX = 255  # leaves room for the parts of a key around it: LMDB takes 511
NAMESPACE_BYTES_MAX = 64
CUSTOM_STATE_BYTES_MAX = 64
SHORT_TEXT_BYTES_MAX = 1 * KIB  # worker, name, queue, signal, reason, holder
CONTENT_TYPE_BYTES_MAX = 255
SIGNAL_BYTES_MAX = 32
TIME_MAX_S = 253_402_300_799  # the last of year 9999, as far as a Timestamp goes
CHILDREN_MAX = 10_000
LABELS_MAX = 64
LABELS_BYTES_MAX = 4 * KIB
EXTRA_MAX = 64
TRACESTATE_CHARS_MAX = 512  # what W3C asks everybody to carry
CAUSES_MAX = 16  # failures in a row, the first of them the task's own

RECORD_BYTES_MAX = 3 * MIB  # so that every record fits a frame, and a frame 4 MiB
TRACEBACK_BYTES_MAX = 64 * KIB
REQUEST_BYTES_MAX = 16 * MIB  # above the record's limit: a large value gets its named reason
RESPONSE_BYTES_MAX = 3_670_016  # 3.5 MiB: clients receive 4 MiB by default
REQUEST_S = 60.0  # for a request to come whole: 16 MiB at 2.2 Mbit/s
METADATA_BYTES_MAX = 8 * KIB  # of a call: names and values, and 32 bytes for each pair; 16 MiB
# of a peer that has not acknowledged it (docs/security.md)

IDS_PER_CALL = 10_000
REPORTS_PER_BATCH = 1_000
ELEMENTS_PER_REQUEST = (
    65_536  # of all its lists and maps: each takes up to 0.5 us of the event loop
)
WATCHED_IDS_PER_STREAM = 100_000
WATCHED_GROUPS_PER_STREAM = 10_000
WATCHED_GROUPS_PER_MESSAGE = 1_000
PAGE_MAX = 1_000
STATES_PER_CALL = 64  # each record of a page is compared with them
MEMBERS_PAGE_MAX = 10_000
INDEX_MAX = 2**31 - 1
TOTAL_MAX = 2**31 - 1
TOTAL_DELTA_MAX = 1_000_000
TOTAL_REQUESTS_REMEMBERED = 64
COMPLETE_GROUPS_PER_ANSWER = 64
GROUPS_PER_MEMBER = 1_000  # that live; each terminal report visits all of them
MEMBER_PLACES_MAX = 4_000  # in these, and in those that are over and not swept: visited, too
CLAIMABLE_PER_ANSWER = 8
CLAIMABLE_SCANNED = 64
GROUP_DEPTH_MAX = 16
GROUP_PARENTS_VISITED = 10_000

FRAME_EVENTS_MAX = 480  # a write costs as much as seventy; with the log's, below READ_ROWS_MAX
FRAME_TASKS_MAX = 256  # of tasks waited for by their ids: each is read by itself, in 6 us
FRAME_BYTES = 1 * MIB  # a frame is flushed beyond this; one record may take it to 3 MiB

SECOND_MS = 1_000
TTL_DEFAULT_MS = 86_400 * SECOND_MS  # Celery's result_expires
TTL_MIN_MS = 1 * SECOND_MS
TTL_MAX_MS = 10 * 366 * 86_400 * SECOND_MS
TOMBSTONE_MS = 3_600 * SECOND_MS
REVOCATION_MS = 86_400 * SECOND_MS
LEASE_DEFAULT_MS = 30 * SECOND_MS
LEASE_MIN_MS = 1 * SECOND_MS
LEASE_MAX_MS = 3_600 * SECOND_MS

HEARTBEAT_DEFAULT_S = 20.0
HEARTBEAT_MIN_S = 1.0
HEARTBEAT_MAX_S = 240.0
TIMEOUT_MAX_S = 366 * 86_400.0
STREAM_AGE_S = 600.0
STREAM_AGE_JITTER = 0.2
STALLED_WRITE_S = 60.0
STREAMS_MAX = 20_000  # at 28 kB each: 560 MB
STREAMS_PER_CONNECTION = 1_000
HANDSHAKE_TIMEOUT_S = 5.0
KEEPALIVE_S = 60.0
KEEPALIVE_TIMEOUT_S = 20.0
CONNECTIONS_MAX = 10_000  # of a process, at 20 to 60 kB each; one too many is closed at once
DESCRIPTORS_KEPT = 128  # for the store, peers, the admin port: connections leave them alone
CONNECTION_IDLE_S = 300.0  # without a call; a client that comes back connects again
CONNECTION_AGE_S = 3_600.0  # so that nothing on it, however slow, lasts for ever
CONNECTION_GRACE_S = 900.0  # for calls under way then: longer than a stream becomes
FAREWELL_S = 0.5
HEALTH_REQUEST_BYTES_MAX = 1 * KIB  # a name of a service; kept while it is watched
HEALTH_WATCHES_MAX = 1_000  # streams; whoever is one too many may call Check
REFLECTIONS_MAX = 8  # streams, each of which may lie half sent: for people at a terminal
REFLECTION_S = 60.0

ADMIN_CONNECTIONS_MAX = 32  # a scraper and a few probes; who waits longest gives way to the next
ADMIN_REQUEST_BYTES_MAX = 8 * KIB  # of the head; nothing is read beyond it
ADMIN_EXCHANGE_S = 10.0  # from the connection to the answer taken
ADMIN_FETCH_S = 2.0  # what a worker has to answer its supervisor: a probe waits meanwhile
WRITER_STUCK_S = 60.0  # a commit that takes longer will not end: the server is not live
WRITER_LOOK_S = 1.0  # how often that is looked at, for health

SETTING_FILE_BYTES_MAX = 16 * MIB  # that a setting names: some 100,000 tokens
MEMORY_LEAST_BYTES = 64 * MIB  # that a process may hold: 35 where it does nothing
READ_ROWS_MAX = 1_000  # rows of one read transaction: it pins pages while it lives
READ_BYTES_MAX = 8 * MIB  # of them, and the row beyond: some 6 ms of the event loop
CALLS_MAX = 4_000  # unary ones under way: half a second's work; more would only wait longer
CALLS_BYTES_MAX = 64 * MIB  # of their requests, beside one that is alone; see `CallBound.full`
LARGE_ANSWERS_MAX = 4  # on their way to a connection, of 3 MiB or so; others wait with small calls
LARGE_ANSWERS_WAIT_S = 5.0  # for who takes none: then one more lies there
WRITES_QUEUED_MAX = 100_000
WRITES_QUEUED_BYTES_MAX = 256 * MIB
COMMIT_OPERATIONS_MAX = 4_096
COMMIT_WORK_US = 20_000  # done out of proportion to what was asked: the rest waits for the next
SWEEP_ROWS = 500
NAMESPACES_MAX = 100_000  # of a store, each there for good: 300 bytes in mind in every process


def advertised() -> dict[str, int]:
    """The limits GetServerInfo names."""
    return {
        "id_bytes_max": ID_BYTES_MAX,
        "record_bytes_max": RECORD_BYTES_MAX,
        "traceback_bytes_max": TRACEBACK_BYTES_MAX,
        "request_bytes_max": REQUEST_BYTES_MAX,
        "ids_per_call": IDS_PER_CALL,
        "reports_per_batch": REPORTS_PER_BATCH,
        "elements_per_request": ELEMENTS_PER_REQUEST,
        "watched_ids_per_stream": WATCHED_IDS_PER_STREAM,
        "watched_groups_per_stream": WATCHED_GROUPS_PER_STREAM,
        "frame_events_max": FRAME_EVENTS_MAX,
        "group_depth_max": GROUP_DEPTH_MAX,
        "streams_per_connection": STREAMS_PER_CONNECTION,
        "namespaces_max": NAMESPACES_MAX,
    }
