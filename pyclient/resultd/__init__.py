"""resultd: store a task's result anywhere, have it stream to whoever waits.

    import resultd

    client = resultd.Client("resultd://127.0.0.1:7758")    # opens nothing until first used
    client.store_result("t1", {"sum": 30})
    client.AsyncResult("t1").get(timeout=10)                # {'sum': 30}

`resultd.aio` has the same names for asyncio. Importing this loads neither grpc nor the rest:
each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resultd import aio, errors, serialization, states, testing
    from resultd._core import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
    from resultd._records import Progress, Report, StoreOutcome
    from resultd.client import Client
    from resultd.errors import (
        IncompleteStream,
        ResultdError,
        ResultGoneError,
        SecurityError,
        SerializationError,
        TaskError,
        TaskRevokedError,
        TimeoutError,  # noqa: A004 (Celery's name)
        UnavailableError,
    )
    from resultd.results import (
        AsyncResult,
        EagerResult,
        GroupResult,
        ResultSet,
        allow_join_result,
        assert_will_not_block,
        denied_join_result,
        result_from_tuple,
    )

_MODULES = ("aio", "errors", "serialization", "states", "testing")
_HOMES = {
    "resultd._core": ("ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"),
    "resultd._records": ("Progress", "Report", "StoreOutcome"),
    "resultd.client": ("Client",),
    "resultd.errors": (
        "IncompleteStream",
        "ResultGoneError",
        "ResultdError",
        "SecurityError",
        "SerializationError",
        "TaskError",
        "TaskRevokedError",
        "TimeoutError",
        "UnavailableError",
    ),
    "resultd.results": (
        "AsyncResult",
        "EagerResult",
        "GroupResult",
        "ResultSet",
        "allow_join_result",
        "assert_will_not_block",
        "denied_join_result",
        "result_from_tuple",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "AsyncResult",
    "Client",
    "EagerResult",
    "GroupResult",
    "IncompleteStream",
    "Progress",
    "Report",
    "ResultGoneError",
    "ResultSet",
    "ResultdError",
    "SecurityError",
    "SerializationError",
    "StoreOutcome",
    "TaskError",
    "TaskRevokedError",
    "TimeoutError",
    "UnavailableError",
    "aio",
    "allow_join_result",
    "assert_will_not_block",
    "denied_join_result",
    "errors",
    "result_from_tuple",
    "serialization",
    "states",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"resultd.{name}")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'resultd' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
