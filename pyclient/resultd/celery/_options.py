"""Where the server is and how to talk to it: the backend's URL and Celery's settings."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from celery.exceptions import ImproperlyConfigured

from resultd import _ids, _url
from resultd._url import Url

logger = logging.getLogger("resultd.celery")

# Celery cuts "resultd+unix:///run/x" at the plus: the backend is given "unix:///run/x".
_SCHEMES = {"grpc": "resultd", "grpcs": "resultds", "unix": "resultd+unix"}

STORE_TIMEOUT = 60.0
CHORD_LEASE = 30.0

# `result_backend_transport_options` that may as well stand behind the "?" of the URL.
_IN_THE_URL = (
    "timeout",
    "attempt_timeout",
    "heartbeat",
    "token",
    "token_file",
    "insecure",
    "ca",
    "cert",
    "key",
    "server_name",
)
_OURS = (*_IN_THE_URL, "tls", "namespace", "store_timeout", "claim_scope", "chord_lease")
# What apps have there for the Redis backend: an app that moves here keeps its settings.
_FOREIGN = frozenset(
    {
        "global_keyprefix",
        "health_check_interval",
        "master_name",
        "read_timeout",
        "result_chord_ordered",
        "retry_on_timeout",
        "retry_policy",
        "sentinel_kwargs",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_timeout",
        "stream_timeout",
        "visibility_timeout",
    }
)


@dataclass(frozen=True)
class Options:
    """What the backend was configured with. Times are in seconds.

    Attributes:
        text: the address as a `resultd.Client` takes it, secrets included.
        url: the same, parsed.
        shown: the address as configured, secrets masked.
        store_timeout: how long storing a result is tried before Celery's own retries.
        claim_scope: which workers may finish a chord whose claimant died.
        chord_lease: how long a worker that publishes a chord's body has for it.
    """

    text: str
    url: Url
    shown: str
    store_timeout: float
    claim_scope: str
    chord_lease: float


def read(url: str | None, transport_options: Mapping[str, Any], app_name: str | None) -> Options:
    """Put the URL and `result_backend_transport_options` together; the URL wins.

    Raises:
        ImproperlyConfigured: one of them is not what it should be.
    """
    options = _ours(transport_options)
    text = _address(url, options)
    try:
        parsed = _url.parse(text)
    except ValueError as error:
        raise ImproperlyConfigured(f"result_backend: {error}") from error
    return Options(
        text=text,
        url=parsed,
        shown=str(parsed),
        store_timeout=_seconds(options, "store_timeout", STORE_TIMEOUT, 0.001, 86_400),
        claim_scope=_claim_scope(options.get("claim_scope"), app_name),
        chord_lease=_seconds(options, "chord_lease", CHORD_LEASE, 1, 3600),
    )


def _address(url: str | None, options: Mapping[str, Any]) -> str:
    named = (url or "").partition("://")
    secure = bool(options.get("tls")) or named[0] in ("resultds", "grpcs")
    if not named[2]:  # "resultd", or "resultd://": the default address
        url = os.environ.get(_url.ENVIRONMENT_VARIABLE) or _url.DEFAULT_URL
    scheme, _, rest = str(url).partition("://")
    scheme = _SCHEMES.get(scheme, scheme)
    if secure and scheme == "resultd":
        scheme = "resultds"
    base, _, query = rest.partition("?")
    given = {pair.partition("=")[0] for pair in query.split("&")}
    more = {key: options[key] for key in _IN_THE_URL if key in options and key not in given}
    namespace = options.get("namespace")
    if namespace and scheme == "resultd+unix" and "namespace" not in given:
        more["namespace"] = namespace
    elif namespace and "/" not in base.rstrip("/"):
        base = f"{base.rstrip('/')}/{namespace}"
    query = "&".join(part for part in (query, urlencode(more)) if part)
    return f"{scheme}://{base}?{query}" if query else f"{scheme}://{base}"


def _ours(transport_options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in transport_options.items():
        if value is None:
            continue  # as if it were not there
        if key in _OURS:
            found[key] = value
            continue
        close = difflib.get_close_matches(key, _OURS, n=1, cutoff=0.8)
        if close and key not in _FOREIGN:
            raise ImproperlyConfigured(
                f"result_backend_transport_options: unknown key {key!r}; did you mean {close[0]!r}?"
            )
        logger.warning(
            "result_backend_transport_options: %r means nothing to resultd and is ignored "
            "(known: %s)",
            key,
            ", ".join(_OURS),
        )
    return found


def _claim_scope(wanted: object, app_name: str | None) -> str:
    """What workers of one app have in common; a name that no server takes is hashed."""
    if not wanted:
        scope = f"celery:{app_name or ''}"
        if _ids.fits(scope):
            return scope
        return f"celery:{hashlib.sha256(scope.encode(errors='surrogatepass')).hexdigest()}"
    if not _ids.fits(str(wanted)):
        raise ImproperlyConfigured(
            "result_backend_transport_options: claim_scope has 1 to 255 bytes of UTF-8 and no "
            f"control characters, not {str(wanted)!r}"
        )
    return str(wanted)


def _seconds(
    options: Mapping[str, Any], key: str, default: float, least: float, most: float
) -> float:
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ImproperlyConfigured(
            f"result_backend_transport_options: {key} is seconds from {least:g} to {most:g}, "
            f"not {value!r}"
        )
    return float(value)
