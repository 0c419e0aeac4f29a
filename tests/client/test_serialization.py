"""Values to bytes and back."""

from __future__ import annotations

import datetime
import decimal
import functools
import gzip
import pickle
import signal
import uuid
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resultd import serialization
from resultd.errors import SecurityError, SerializationError
from resultd.serialization import Registry
from resultd.v1 import value_pb2

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_what_json_can_say_comes_back_as_it_was(value: Any) -> None:
    """None, booleans, numbers, strings, lists and dicts survive."""
    registry = Registry()
    try:
        payload = registry.encode(value)
    except SerializationError as error:
        assert "surrogates" in str(error)  # noqa: PT017 (lone surrogates are no text)
        return
    assert payload.content_type == "application/json"
    assert registry.decode(payload) == value


def test_bytes_travel_by_themselves() -> None:
    """A bytes value is not JSON and comes back as bytes."""
    payload = Registry().encode(b"\x00\xff")
    assert payload.content_type == "application/octet-stream"
    assert Registry().decode(payload) == b"\x00\xff"


def test_obvious_spellings_are_used_one_way() -> None:
    """Times, UUIDs and decimals become strings."""
    when = datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.timezone.utc)
    value = [when, when.date(), uuid.UUID(int=1), decimal.Decimal("1.50")]
    back = Registry().decode(Registry().encode(value))
    assert back == [when.isoformat(), "2024-01-02", str(uuid.UUID(int=1)), "1.50"]


@pytest.mark.parametrize("value", [{1, 2}, object(), [b"x"], {"a": {(1, 2): 3}}])
def test_everything_else_is_refused_with_the_remedy(value: Any) -> None:
    """The sentence says what to do."""
    with pytest.raises(SerializationError, match=r"convert it, or register a serializer"):
        Registry().encode(value)


def test_a_circle_is_refused() -> None:
    """A value that contains itself raises, it does not recurse for ever."""
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(SerializationError):
        Registry().encode(circle)


class TimeIsUpError(Exception):
    """What a signal's handler raises, as Celery's for soft time limits."""


class Handlers:
    """Those that a program may have."""

    def __call__(self, *args: Any) -> None:
        """One that is an object."""
        raise TimeIsUpError

    def method(self, *args: Any) -> None:
        """One that is an object's."""
        raise TimeIsUpError


def handler(*args: Any) -> None:
    """A plain one."""
    raise TimeIsUpError


@pytest.mark.parametrize(
    "installed", [handler, Handlers(), Handlers().method, functools.partial(handler, 1)]
)
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 on this platform")
def test_what_a_signals_handler_raises_is_no_encoders_error(installed: Any) -> None:
    """A soft time limit that is up while a value is written or read comes through as it is."""

    def interrupted(_: Any) -> bytes:
        signal.raise_signal(signal.SIGUSR1)
        return b""

    def broken(_: Any) -> bytes:
        raise TimeIsUpError

    registry = Registry()
    registry.register("x/interrupted", interrupted, interrupted, name="interrupted")
    registry.register("x/broken", broken, broken, name="broken")
    before = signal.signal(signal.SIGUSR1, installed)
    try:
        with pytest.raises(TimeIsUpError):
            registry.encode(1, "interrupted")
        with pytest.raises(TimeIsUpError):
            registry.decode(value_pb2.Payload(content_type="x/interrupted", data=b"1"))
        with pytest.raises(SerializationError):
            registry.encode(1, "broken")
    finally:
        signal.signal(signal.SIGUSR1, before)


class Bomb:
    """Runs code when it is unpickled."""

    went_off = False

    def __reduce__(self) -> Any:
        return (setattr, (Bomb, "went_off", True))


@pytest.mark.parametrize(
    "content_type",
    [serialization.PICKLE, "application/x-python-serialize; pickle", "application/PICKLE"],
)
def test_a_pickle_is_refused_and_not_looked_at(content_type: str) -> None:
    """Nothing runs, whatever the content type is spelled like."""
    payload = value_pb2.Payload(content_type=content_type, data=pickle.dumps(Bomb()))
    with pytest.raises(SerializationError):
        Registry().decode(payload)
    assert not Bomb.went_off


def test_pickle_can_be_switched_on() -> None:
    """Then, and only then, and in that registry only."""
    registry = Registry()
    registry.enable_pickle()
    payload = registry.encode({1, 2}, "pickle")
    assert registry.decode(payload) == {1, 2}
    with pytest.raises(SecurityError, match="enable_pickle"):
        Registry().decode(payload)


@pytest.mark.parametrize(
    "payload",
    [
        value_pb2.Payload(data=b"{"),
        value_pb2.Payload(data=b"\xff"),
        value_pb2.Payload(data=b"[" * 100_000),
        value_pb2.Payload(content_type="text/x-other", data=b"1"),
        value_pb2.Payload(content_encoding="br", data=b"1"),
        value_pb2.Payload(content_encoding="gzip", data=b"1"),
        value_pb2.Payload(content_encoding="gzip", data=gzip.compress(b"123456")[:-9]),
    ],
)
def test_bytes_that_are_not_what_they_claim_raise_one_error(payload: value_pb2.Payload) -> None:
    """Broken, unknown or cut payloads are a SerializationError, nothing else."""
    with pytest.raises(SerializationError):
        Registry().decode(payload)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_compressed_values_are_read(compress: Any) -> None:
    """gzip and zlib, by their header."""
    payload = value_pb2.Payload(content_encoding="gzip", data=compress(b"[1]"))
    assert Registry().decode(payload) == [1]


def test_a_compression_bomb_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small payload that would grow beyond the limit is refused."""
    monkeypatch.setattr(serialization, "DECOMPRESSED_BYTES_MAX", 1000)
    payload = value_pb2.Payload(content_encoding="gzip", data=gzip.compress(b" " * 1001))
    with pytest.raises(SerializationError, match="over 1000 bytes"):
        Registry().decode(payload)


def test_a_registered_serializer_is_used_by_name_and_type() -> None:
    """What it raises becomes a SerializationError."""
    registry = Registry()
    registry.register("text/x-upper", lambda v: v.upper().encode(), bytes.decode, name="upper")
    assert registry.decode(registry.encode("abc", "upper")) == "ABC"
    with pytest.raises(SerializationError, match="upper cannot encode"):
        registry.encode(1, "upper")
    with pytest.raises(SerializationError, match="no serializer 'lower'"):
        registry.encode(1, "lower")
    with pytest.raises(SerializationError, match="bytes only"):
        registry.encode(1, "binary")


@pytest.mark.parametrize("wrong", [KeyboardInterrupt, "ValueError", int])
def test_only_exceptions_can_be_registered(wrong: Any) -> None:
    """SystemExit and its like do not come back from a store."""
    with pytest.raises(TypeError):
        Registry().register_exception(wrong)
