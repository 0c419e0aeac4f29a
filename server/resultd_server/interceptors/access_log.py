"""Who called, for the log; and a line for every call where debugging is on."""

from __future__ import annotations

import asyncio
import re
import time
import uuid

import grpc
import structlog

from resultd_server import limits
from resultd_server.errors import DomainError
from resultd_server.interceptors import Context, Handler, Raw

REQUEST_ID_KEY = "x-request-id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

log = structlog.get_logger("resultd.calls")


def caller(context: Context) -> dict[str, str]:
    """`request_id`, `peer` and `namespace` of a call; an id is made where none was sent.

    An id that is too long, or has other characters than letters, digits and `._:/+=@-`, is
    taken for none. A namespace is cut to what a valid one may have.
    """
    # The last one said counts; a namespace said twice is refused before it means anything.
    said = dict(context.invocation_metadata() or ())
    request_id = said.get(REQUEST_ID_KEY, "")
    if not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
        request_id = uuid.uuid4().hex
    namespace = said.get("resultd-namespace", "default")[: limits.NAMESPACE_BYTES_MAX]
    return {
        "request_id": request_id,
        "peer": context.peer(),
        "namespace": namespace if isinstance(namespace, str) else repr(namespace),
    }


def stranger(context: Context) -> dict[str, str]:
    """The same of a call whose metadata nobody is to look at: an id is made, it has no namespace.

    To look at them costs as much as the peer wants, while it has not acknowledged their limit:
    gRPC takes up to 16 MiB then, and makes an object of each pair.
    """
    return {"request_id": uuid.uuid4().hex, "peer": context.peer()}


def log_calls(method: str, handler: Handler) -> Handler:
    """Writes a line when a call is over: whose it was, how it ended, how long it took."""

    async def wrapped(raw: Raw, context: Context) -> bytes | None:
        began_s = time.monotonic()
        end = "failed"
        try:
            answer = await handler(raw, context)
            end = "OK"
            return answer
        except DomainError as error:
            end = error.reason_name
            raise
        except (asyncio.CancelledError, grpc.aio.BaseError):
            end = "CANCELLED"
            raise
        finally:
            took_ms = round((time.monotonic() - began_s) * 1000, 3)
            log.debug("called", method=method, end=end, took_ms=took_ms, **caller(context))

    return wrapped
