"""Where the backend finds its server: URLs and `result_backend_transport_options`."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from celery.exceptions import ImproperlyConfigured

from resultd import _ids, _url
from resultd.celery import _options
from resultd.celery._options import Options


def read(url: str | None, **options: Any) -> Options:
    """Puts URL and options together."""
    return _options.read(url, options, "proj")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a server of his own."""
    monkeypatch.delenv(_url.ENVIRONMENT_VARIABLE, raising=False)


class TestUrl:
    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ("resultd://host:1/ns?timeout=5", "resultd://host:1/ns?timeout=5"),
            ("resultds://host", "resultds://host"),
            ("grpc://host/ns", "resultd://host/ns"),
            ("grpcs://host:1", "resultds://host:1"),
            # What Celery hands on of resultd+unix:///run/x?namespace=ns.
            ("unix:///run/x?namespace=ns", "resultd+unix:///run/x?namespace=ns"),
            ("resultd+unix:///run/x", "resultd+unix:///run/x"),
        ],
    )
    def test_each_scheme(self, given: str, text: str) -> None:
        """And Celery's other names for them."""
        assert read(given).text == text

    @pytest.mark.parametrize("url", [None, "", "resultd", "resultd://", "grpc://"])
    def test_without_a_host_is_the_default(
        self, url: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """RESULTD_URL if it is set, else this machine."""
        assert read(url).text == _url.DEFAULT_URL
        monkeypatch.setenv(_url.ENVIRONMENT_VARIABLE, "resultds://elsewhere:1/ns")
        assert read(url).text == "resultds://elsewhere:1/ns"

    @pytest.mark.parametrize("url", ["resultds://", "grpcs://"])
    def test_that_wants_tls_gets_it(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Wherever the host comes from."""
        assert read(url).url.secure
        monkeypatch.setenv(_url.ENVIRONMENT_VARIABLE, "resultd://elsewhere:1")
        assert read(url).text == "resultds://elsewhere:1"

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("resultd://host?timeuot=5", "did you mean 'timeout'"),
            ("resultd://host:port", "port"),
            ("resultd://host/Name", "namespace"),
            ("resultd://user:secret@host", r"\?token="),
            ("http://host", "resultd://"),
            ("resultd://host?timeout=soon", "seconds"),
        ],
    )
    def test_that_is_none_is_refused(self, url: str, says: str) -> None:
        """Celery's error says what to write instead, and no secret."""
        with pytest.raises(ImproperlyConfigured, match=f"^result_backend: .*{says}") as raised:
            read(url)
        assert "secret" not in str(raised.value)

    def test_shows_no_token(self) -> None:
        """From the URL or the options."""
        for options in (read("resultds://h?token=secret"), read("resultds://h", token="secret")):
            assert "secret" not in options.shown
            assert "***" in options.shown
            assert options.url.token == "secret"


class TestOptions:
    def test_may_say_what_the_url_says(self) -> None:
        """Each key that may stand behind its question mark."""
        found = read(
            "resultds://host",
            timeout=5,
            attempt_timeout=2.5,
            heartbeat=10,
            token="a+b&c",
            ca="/ca.pem",
            cert="/cert.pem",
            key="/key.pem",
            server_name="name",
        ).url
        assert (found.timeout, found.attempt_timeout, found.heartbeat) == (5.0, 2.5, 10.0)
        assert (found.token, found.server_name) == ("a+b&c", "name")
        assert (found.ca, found.cert, found.key) == ("/ca.pem", "/cert.pem", "/key.pem")

    def test_give_way_to_the_url(self) -> None:
        """What stands nearer to the server wins."""
        found = read("resultd://host/ns?timeout=5", timeout=6, namespace="other").url
        assert (found.timeout, found.namespace) == (5.0, "ns")

    @pytest.mark.parametrize(
        ("url", "namespace"),
        [
            ("resultd://host", "mine"),
            ("resultd://host/", "mine"),
            ("resultd://host?timeout=5", "mine"),
            ("unix:///run/x", "mine"),
            ("unix:///run/x?namespace=ns", "ns"),
        ],
    )
    def test_may_name_the_namespace(self, url: str, namespace: str) -> None:
        """Of a host and of a socket."""
        assert read(url, namespace="mine").url.namespace == namespace

    def test_may_ask_for_tls(self) -> None:
        """Then grpc:// is enough."""
        assert read("grpc://host", tls=True).url.secure
        assert not read("grpc://host", tls=False).url.secure

    def test_have_defaults(self) -> None:
        """Those of the documentation; an app without a name has a scope all the same."""
        found = read("resultd://host")
        assert (found.store_timeout, found.chord_lease) == (60.0, 30.0)
        assert found.claim_scope == "celery:proj"
        assert _options.read("resultd://host", {}, None).claim_scope == "celery:"

    def test_of_chords_and_stores(self) -> None:
        """As they are given."""
        found = read("resultd://host", store_timeout=0.5, chord_lease=1, claim_scope="us")
        assert (found.store_timeout, found.chord_lease, found.claim_scope) == (0.5, 1.0, "us")

    @pytest.mark.parametrize("name", ["x" * 260, "two\nlines", "half \ud800"], ids=ascii)
    def test_an_apps_name_that_is_no_scope_is_hashed(self, name: str) -> None:
        """So that its workers have one, and other apps another."""
        found = _options.read("resultd://host", {}, name)
        assert _ids.fits(found.claim_scope)
        assert found == _options.read("resultd://host", {}, name)
        assert found != _options.read("resultd://host", {}, f"{name}2")

    @pytest.mark.parametrize("scope", ["x" * 256, "two\nlines"], ids=ascii)
    def test_a_scope_no_server_takes_is_refused(self, scope: str) -> None:
        """At the start, not when the first task ends."""
        with pytest.raises(ImproperlyConfigured, match="claim_scope has 1 to 255 bytes"):
            read("resultd://host", claim_scope=scope)

    def test_that_are_none_are_not_there(self) -> None:
        """As settings read from an environment often are."""
        found = read("resultd://host", token=None, store_timeout=None, namespace=None, tls=None)
        assert found == read("resultd://host")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"store_timeout": 0},
            {"store_timeout": "60"},
            {"store_timeout": True},
            {"chord_lease": 0.5},
            {"chord_lease": 3601},
            {"chord_lease": float("nan")},
        ],
        ids=repr,
    )
    def test_out_of_range_are_refused(self, wrong: dict[str, Any]) -> None:
        """With the range and what was given."""
        (key,) = wrong
        with pytest.raises(ImproperlyConfigured, match=f"{key} is seconds from .* to .*, not"):
            read("resultd://host", **wrong)

    @pytest.mark.parametrize("wrong", [{"timeout": "soon"}, {"heartbeat": 0}, {"cert": "/c"}])
    def test_the_url_would_refuse_are_refused(self, wrong: dict[str, Any]) -> None:
        """By the same words."""
        with pytest.raises(ImproperlyConfigured):
            read("resultds://host", **wrong)

    @pytest.mark.parametrize(
        ("typo", "meant"),
        [("chord_leases", "chord_lease"), ("tokn", "token"), ("claimscope", "claim_scope")],
    )
    def test_misspelt_are_refused(self, typo: str, meant: str) -> None:
        """A setting that is not heeded is worse than none."""
        with pytest.raises(ImproperlyConfigured, match=f"did you mean '{meant}'"):
            read("resultd://host", **{typo: 1})

    @pytest.mark.parametrize(
        "foreign",
        [
            "global_keyprefix",
            "master_name",
            "read_timeout",
            "result_chord_ordered",
            "retry_policy",
            "socket_keepalive",
            "socket_timeout",
            "stream_timeout",
            "visibility_timeout",
            "something_else_entirely",
        ],
    )
    def test_of_other_backends_are_left_alone(
        self, foreign: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An app that comes from Redis keeps its settings; the log says what means nothing."""
        with caplog.at_level(logging.WARNING, "resultd.celery"):
            assert read("resultd://host", **{foreign: 1}) == read("resultd://host")
        assert foreign in caplog.text
