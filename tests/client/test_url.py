"""Addresses."""

from __future__ import annotations

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
        ("resultd://h#f", "'#'"),
        ("resultd+unix://r.sock", "three slashes"),
        ("resultds://h?cert=x", "go together"),
    ],
)
def test_a_wrong_address_is_refused_with_the_remedy(text: str, sentence: str) -> None:
    """Each mistake has a sentence that says what to write, and no secret in it."""
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")) as caught:
        _url.parse(text)
    assert "secret" not in str(caught.value)


def test_the_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an address RESULTD_URL counts, and without that the port on this host."""
    monkeypatch.setenv("RESULTD_URL", "resultd://elsewhere:5")
    assert _url.parse().target == "dns:///elsewhere:5"
    monkeypatch.delenv("RESULTD_URL")
    assert _url.parse().target == "dns:///127.0.0.1:7758"


def test_no_secret_is_ever_shown() -> None:
    """Neither repr nor str of an address or a client contains the token."""
    import resultd

    text = "resultd://h/ns?token=geheim&timeout=3"
    for shown in (repr(_url.parse(text)), str(_url.parse(text)), repr(resultd.Client(text))):
        assert "geheim" not in shown
        assert "token=***" in shown
        assert "/ns" in shown
