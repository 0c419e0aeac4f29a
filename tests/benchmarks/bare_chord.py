"""The least a durable chord can cost over gRPC: a bare call for each part, and none besides.

A part's value is kept by a bare server, which answers once 4 KiB are on disk; the answer to the
last part brings the values of all. Nothing is known of who repeats a part, dies, or fails.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import grpc
from celery.backends.redis import RedisBackend
from celery.canvas import maybe_signature

from tests.benchmarks.celery_app import note_stored

_NAME = f"{__name__}:BareChords"
_AT = "?bare="


def url(redis: str, bare: str) -> str:
    """What a Celery app is told to have this backend: the rest in Redis, chords at the server."""
    return f"{_NAME}+{redis}{_AT}{bare}"


class BareChords(RedisBackend):  # type: ignore[misc]  # Celery has no types
    """Celery's Redis backend, but for chords."""

    def __init__(self, *args: Any, url: str, **kwargs: Any) -> None:
        redis, _, self._address = url.partition(_AT)
        super().__init__(*args, url=redis, **kwargs)

    @functools.cached_property
    def _channel(self) -> grpc.Channel:
        """Made at the first call: it does not survive a fork."""
        return grpc.insecure_channel(self._address)

    @functools.cached_property
    def _part(self) -> Any:
        return self._channel.unary_unary("/Echo/KeptPart")

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None
    ) -> Any:
        if getattr(request, "chord", None):
            return result  # goes with the part
        return super()._store_result(task_id, result, state, traceback, request)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Say how many parts there are; the last one is not published yet."""
        tell: Any = self._channel.unary_unary("/Echo/PartsExpected")
        tell(b"%b\0%d" % (group_id.encode(), chord_size))

    def on_chord_part_return(self, request: Any, state: str, result: Any, **_: Any) -> None:
        """Keep a part; publish the body with all of them if they came back."""
        place = b"%b\0%d\0" % (request.group.encode(), request.group_index)
        values = self._part(place + json.dumps(result).encode())
        note_stored()
        if values:
            maybe_signature(request.chord, app=self.app).delay(json.loads(values))
