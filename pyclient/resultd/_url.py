"""Addresses: `resultd://host:7758/namespace?timeout=5`, parsed once, secrets kept out of sight."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, unquote, urlsplit

DEFAULT_URL = "resultd://127.0.0.1:7758"
DEFAULT_PORT = 7758  # R-S-L-T on a telephone keypad
DEFAULT_NAMESPACE = "default"
ENVIRONMENT_VARIABLE = "RESULTD_URL"
TOKEN_VARIABLE = "RESULTD_TOKEN"
TOKEN_FILE_VARIABLE = "RESULTD_TOKEN_FILE"

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HERE = re.compile(r"dns:///(localhost|127(\.\d+){3}|\[::1\]):\d+")
_SCHEMES = ("resultd", "resultds", "resultd+unix")
# What may stand behind the "?", and for which schemes only.
_QUERY_KEYS: dict[str, tuple[str, ...]] = {
    "timeout": _SCHEMES,
    "attempt_timeout": _SCHEMES,
    "heartbeat": _SCHEMES,
    "token": _SCHEMES,
    "token_file": _SCHEMES,
    "insecure": ("resultd",),
    "namespace": ("resultd+unix",),
    "ca": ("resultds",),
    "cert": ("resultds",),
    "key": ("resultds",),
    "server_name": ("resultds",),
}


# The part of an attempt's time after which a connection without an answer is given up. Not the
# whole of it: a report's call has what its report has left, which is a little less.
SILENT_SHARE = 0.9


@dataclass(frozen=True, repr=False)
class Url:
    """Where the server is and how to talk to it. Times are in seconds."""

    target: str
    scheme: str
    shown: str
    namespace: str = DEFAULT_NAMESPACE
    timeout: float = 30.0
    attempt_timeout: float = 10.0
    heartbeat: float = 20.0
    token: str = ""
    token_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme == "resultds"

    @property
    def here(self) -> bool:
        """Whether the address names this host's loopback."""
        return _HERE.fullmatch(self.target) is not None

    def is_silence(self, seconds: float) -> bool:
        """Whether a call without an answer for so long says that its connection is dead."""
        return seconds >= SILENT_SHARE * min(self.timeout, self.attempt_timeout)

    def __repr__(self) -> str:
        return f"Url({self.shown!r})"

    def __str__(self) -> str:
        return self.shown


def parse(text: str | None = None) -> Url:
    """Parse an address; None means `RESULTD_URL`, else `resultd://127.0.0.1:7758`.

    Raises:
        ValueError: the address is not one; the sentence says what to write instead, and
            never repeats a secret.
    """
    text = text if text is not None else os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_URL
    parts = urlsplit(text)
    if parts.scheme not in _SCHEMES:
        raise ValueError(
            f"a resultd address begins with resultd://, resultds:// or resultd+unix://, "
            f"not with {parts.scheme or text.partition('?')[0]!r}"
            + _suggestion(parts.scheme, _SCHEMES)
        )
    if parts.username or parts.password:
        raise ValueError("resultd addresses have no user or password: write ?token=... instead")
    if parts.fragment:
        raise ValueError("a resultd address has no '#' part")
    query = _query(parts.query, parts.scheme)
    insecure = _yes("insecure", query.pop("insecure", "no"))
    if parts.scheme == "resultd+unix":
        return _with_token(_unix(parts.netloc, parts.path, query))
    host, port = _host_and_port(parts.netloc)
    url = _with_token(_tcp(parts.scheme, host, port, parts.path, query))
    if (url.token or url.token_file) and not (url.secure or insecure or _loopback(host)):
        raise ValueError(
            f"a token would travel unencrypted to {host}: write resultds://, or insecure=yes "
            "where nobody can listen"
        )
    return url


def _with_token(url: Url) -> Url:
    """Take the token from the environment if the address names none."""
    if not (url.token or url.token_file):
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        file = "" if token else os.environ.get(TOKEN_FILE_VARIABLE, "")
        url = replace(url, token=token, token_file=file)
    if url.token and not (url.token.isascii() and url.token.isprintable() and " " not in url.token):
        raise ValueError("a token is one word of ASCII")
    return url


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        import ipaddress  # late, as difflib below: each takes milliseconds, few addresses need it

        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name


def _host_and_port(netloc: str) -> tuple[str, int]:
    parts = urlsplit(f"//{netloc}")
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError:
        raise ValueError("the port of a resultd address is a number from 1 to 65535") from None
    if not parts.hostname:
        raise ValueError(f"a resultd address names a host: resultd://127.0.0.1:{DEFAULT_PORT}")
    return parts.hostname, port


def _tcp(scheme: str, host: str, port: int, path: str, query: dict[str, str]) -> Url:
    namespace = _namespace(unquote(path.strip("/")))
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Url(
        target=f"dns:///{where}",
        scheme=scheme,
        shown=_shown(f"{scheme}://{where}", namespace, query),
        namespace=namespace,
        **_options(query),  # type: ignore[arg-type]  # keys checked by _query, types by _options
    )


def _unix(netloc: str, path: str, query: dict[str, str]) -> Url:
    if netloc or not path.startswith("/") or path == "/":
        raise ValueError("a socket's address has three slashes: resultd+unix:///run/resultd.sock")
    namespace = _namespace(query.pop("namespace", ""))
    shown = _shown(f"resultd+unix://{path}", "", query)
    if namespace != DEFAULT_NAMESPACE:
        shown += f"{'&' if '?' in shown else '?'}namespace={namespace}"
    return Url(
        target=f"unix:{unquote(path)}",
        scheme="resultd+unix",
        shown=shown,
        namespace=namespace,
        **_options(query),  # type: ignore[arg-type]  # as above
    )


def _namespace(text: str) -> str:
    if not text:
        return DEFAULT_NAMESPACE
    if not _NAMESPACE.fullmatch(text):
        raise ValueError(
            f"a namespace is 1 to 64 of a-z 0-9 . _ -, the first a letter or digit, not {text!r}"
        )
    return text


def _query(text: str, scheme: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
    except ValueError:
        raise ValueError("the query of a resultd address is key=value&key=value") from None
    found: dict[str, str] = {}
    allowed = [key for key, schemes in _QUERY_KEYS.items() if scheme in schemes]
    for key, value in pairs:
        if key not in allowed:
            raise ValueError(
                f"unknown key {key!r} in a {scheme}:// address" + _suggestion(key, allowed)
            )
        if key in found:
            raise ValueError(f"key {key!r} occurs twice in a resultd address")
        found[key] = value
    return found


def _options(query: dict[str, str]) -> dict[str, object]:
    options: dict[str, object] = dict(query)
    for key, least, most in (
        ("timeout", 0.001, 86_400.0),
        ("attempt_timeout", 0.001, 3_600.0),
        ("heartbeat", 1.0, 240.0),
    ):
        if key in query:
            options[key] = _seconds(key, query[key], least, most)
    if bool(query.get("cert")) != bool(query.get("key")):
        raise ValueError("cert and key of a resultds:// address go together")
    if query.get("token") and query.get("token_file"):
        raise ValueError("a resultd address names a token or a token_file, not both")
    return options


def _yes(key: str, text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{key} is yes or no, not {text!r}")
    return text == "yes"


def _seconds(key: str, text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        raise ValueError(f"{key} is seconds from {least:g} to {most:g}, not {text!r}")
    return value


def _shown(base: str, namespace: str, query: dict[str, str]) -> str:
    path = f"/{namespace}" if namespace not in ("", DEFAULT_NAMESPACE) else ""
    pairs = [f"{key}={'***' if key == 'token' else value}" for key, value in query.items()]
    return base + path + ("?" + "&".join(pairs) if pairs else "")


def _suggestion(word: str, known: tuple[str, ...] | list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}"
