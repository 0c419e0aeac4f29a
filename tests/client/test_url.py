"""Addresses."""

from __future__ import annotations

import re

import pytest

from resultd import _url


@pytest.mark.parametrize(
    ("text", "target", "namespace", "timeout"),
    [
        ("resultd://h", "dns:///h:7758", "default", 30.0),
        ("resultd://h:1/ns?timeout=5", "dns:///h:1", "ns", 5.0),
        ("resultds://h:2/a.b-c_d", "dns:///h:2", "a.b-c_d", 30.0),
        ("resultd://[::1]:3", "dns:///[::1]:3", "default", 30.0),
        ("resultd+unix:///run/r.sock?namespace=x", "unix:/run/r.sock", "x", 30.0),
    ],
)
def test_an_address_says_where_and_how(
    text: str, target: str, namespace: str, timeout: float
) -> None:
    """Scheme, host, port, namespace and options are read from one line."""
    url = _url.parse(text)
    assert (url.target, url.namespace, url.timeout) == (target, namespace, timeout)
    assert url.secure == text.startswith("resultds:")


@pytest.mark.parametrize(
    ("query", "seconds", "silence"),
    [
        ("", 9.99, True),  # an attempt may take 10
        ("", 8.9, False),
        ("?timeout=5", 4.99, True),
        ("?attempt_timeout=0.3", 0.29, True),
        ("?attempt_timeout=0.3", 0.2, False),
    ],
)
def test_a_call_left_alone_for_its_attempts_time_is_silence(
    query: str, seconds: float, silence: bool
) -> None:
    """Nearly all of it, or of the whole call's time where that is shorter."""
    assert _url.parse(f"resultd://h{query}").is_silence(seconds) is silence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("http://h", "begins with resultd://"),
        ("resultdd://h", "did you mean 'resultd'"),
        ("resultd://h?timout=5", "did you mean 'timeout'"),
        ("resultd://h?ca=x", "unknown key 'ca'"),
        ("resultd://h?timeout=soon", "timeout is seconds"),
        ("resultd://h?heartbeat=0.1", "heartbeat is seconds from 1 to 240"),
        ("resultd://h?timeout=1&timeout=2", "twice"),
        ("resultd://h?timeout", "key=value"),
        ("resultd://", "names a host"),
        ("resultd://h:99999", "port"),
        ("resultd://u:secret@h", "no user"),
        ("resultd://h/UPPER", "namespace"),
        ("resultd://h/_x", "first a letter or digit"),
        ("resultd://h/-x", "first a letter or digit"),
        ("resultd+unix:///s?namespace=.x", "first a letter or digit"),
        ("resultd://h#f", "'#'"),
        ("resultd+unix://r.sock", "three slashes"),
        ("resultds://h?cert=x", "go together"),
        ("resultds://h?token=secret&token_file=x", "not both"),
        ("resultds://h?token=a%20secret", "one word"),
        ("resultds://h?token=secret%0A", "one word"),
        ("resultd://h?token=secret", "unencrypted to h: write resultds://, or insecure=yes"),
        ("resultd://127.example.org?token_file=x", "unencrypted"),
        ("resultd://h?token=secret&insecure=maybe", "yes or no"),
        ("resultds://h?token=secret&insecure=yes", "unknown key 'insecure'"),
    ],
)
def test_a_wrong_address_is_refused_with_the_remedy(text: str, sentence: str) -> None:
    """Each mistake has a sentence that says what to write, and no secret in it."""
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        _url.parse(text)
    assert "secret" not in str(caught.value)


def test_the_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address RESULTD_URL counts, and without that the port on this host."""
    monkeypatch.setenv("RESULTD_URL", "resultd://elsewhere:5")
    assert _url.parse().target == "dns:///elsewhere:5"
    monkeypatch.delenv("RESULTD_URL")
    assert _url.parse().target == "dns:///127.0.0.1:7758"


@pytest.mark.parametrize(
    "text",
    [
        "resultds://h?token=x",
        "resultd://localhost?token=x",
        "resultd://127.0.0.2?token=x",
        "resultd://[::1]?token=x",
        "resultd+unix:///run/r.sock?token=x",
        "resultd://h?token=x&insecure=yes",
    ],
)
def test_a_token_goes_where_nobody_can_listen(text: str) -> None:
    """Encrypted, to this host, through a socket; or where somebody says that it is fine."""
    assert _url.parse(text).token == "x"


def test_the_environment_brings_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """RESULTD_TOKEN, else RESULTD_TOKEN_FILE; what the address says comes first."""
    monkeypatch.setenv("RESULTD_TOKEN_FILE", "/run/token")
    found = _url.parse("resultds://h")
    assert (found.token, found.token_file) == ("", "/run/token")
    monkeypatch.setenv("RESULTD_TOKEN", "geheim\n")
    found = _url.parse("resultds://h")
    assert (found.token, found.token_file) == ("geheim", "")
    assert "geheim" not in f"{found} {found!r}"
    assert _url.parse("resultds://h?token=x").token == "x"
    assert _url.parse("resultds://h?token_file=x").token == ""
    with pytest.raises(ValueError, match="unencrypted"):
        _url.parse("resultd://h")


def test_no_secret_is_ever_shown() -> None:
    """Neither repr nor str of an address or a client contains the token."""
    import resultd

    text = "resultds://h/ns?token=geheim&timeout=3"
    for shown in (repr(_url.parse(text)), str(_url.parse(text)), repr(resultd.Client(text))):
        assert "geheim" not in shown
        assert "token=***" in shown
        assert "/ns" in shown
