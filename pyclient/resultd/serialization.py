"""Values to bytes and back.

JSON is the default, so that workers in any language can read what was stored:

- `None`, booleans, numbers, strings, lists and dicts come back as they were; a tuple comes
  back as a list, a dict's keys as strings;
- `datetime`, `date`, `time` are written in ISO 8601, `UUID` and `Decimal` as strings; they
  come back as strings;
- a `bytes` value stored by itself travels as `application/octet-stream` and comes back as
  bytes; inside other values bytes are refused;
- everything else is refused with a sentence that says what to do.

Others are registered; pickle is refused unless it is switched on, because unpickling runs
code of whoever wrote the bytes:

    registry = resultd.serialization.Registry()
    registry.register("application/x-msgpack", msgpack.packb, msgpack.unpackb, name="msgpack")
    client = resultd.Client(url, serializers=registry, serializer="msgpack")

Exceptions come back as their class only for builtins and for what was registered:

    registry.register_exception(PaymentRefused)
"""

from __future__ import annotations

import datetime
import json
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from resultd import _signals
from resultd.errors import SecurityError, SerializationError
from resultd.v1 import value_pb2

__all__ = ["Registry", "Serializer"]

JSON = "application/json"
BINARY = "application/octet-stream"
PICKLE = "application/x-python-pickle"

# A compressed value may not grow beyond this when read: 20 times the largest record.
DECOMPRESSED_BYTES_MAX = 64 * 1024 * 1024

# json.loads() guesses the encoding first, which takes as long as reading a small value.
_decode_json = json.JSONDecoder().decode

_ExceptionT = TypeVar("_ExceptionT", bound=type[Exception])


@dataclass(frozen=True)
class Serializer:
    """A named way to write values as bytes of one content type."""

    name: str
    content_type: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


class Registry:
    """Which content types are read and written, and which exception classes come back.

    One registry may serve any number of clients. Registering is not meant to happen while
    other threads decode.
    """

    def __init__(self) -> None:
        self._by_type: dict[str, Serializer] = {}
        self._by_name: dict[str, Serializer] = {}
        self._exceptions: dict[tuple[str, str], type[Exception]] = {}
        self.register(JSON, _to_json, _from_json, name="json")
        self.register(BINARY, _to_binary, bytes, name="binary")

    def register(
        self,
        content_type: str,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        *,
        name: str,
    ) -> None:
        """Add a serializer, or replace the one of that name and content type."""
        serializer = Serializer(name, content_type, encode, decode)
        self._by_type[content_type] = serializer
        self._by_name[name] = serializer

    def enable_pickle(self) -> None:
        """Read and write pickles. Whoever can store a result can then run code here."""
        self.register(PICKLE, pickle.dumps, pickle.loads, name="pickle")

    def register_exception(
        self, cls: _ExceptionT, *, name: str | None = None, module: str | None = None
    ) -> _ExceptionT:
        """Let failures of this class come back as it; usable as a decorator.

        `name` and `module` say what the worker calls it, where that differs.

        Raises:
            TypeError: `cls` is not a class derived from `Exception`.
        """
        given: object = cls  # callers without a type checker pass anything
        if not (isinstance(given, type) and issubclass(given, Exception)):
            raise TypeError(f"only classes derived from Exception can be registered, not {cls!r}")
        self._exceptions[module or cls.__module__, name or cls.__qualname__] = cls
        return cls

    def exception_class(self, module: str, name: str) -> type[Exception] | None:
        """Return the class registered under the worker's names for it, or None."""
        return self._exceptions.get((module, name))

    def encode(self, value: object, serializer: str = "json") -> value_pb2.Payload:
        """Write a value.

        Raises:
            SerializationError: it cannot be written so, or there is no such serializer.
        """
        payload = value_pb2.Payload()
        self.encode_into(payload, value, serializer)
        return payload

    def encode_into(
        self, payload: value_pb2.Payload, value: object, serializer: str = "json"
    ) -> None:
        """Write a value into a message's own payload, an empty one, which spares a copy.

        Raises:
            SerializationError: as `encode`; nothing is written then.
        """
        if serializer == "json" and isinstance(value, bytes):
            serializer = "binary"
        chosen = self._by_name.get(serializer)
        if chosen is None:
            raise _unknown("serializer", serializer, sorted(self._by_name))
        try:
            data = chosen.encode(value)
        except SerializationError:
            raise
        except Exception as error:  # what a registered encoder raises is its own affair
            if _signals.raised_by(error) is not None:
                raise
            raise SerializationError(f"{chosen.name} cannot encode the value: {error}") from error
        payload.content_type = chosen.content_type
        payload.data = data

    def decode(self, payload: value_pb2.Payload) -> Any:
        """Read a value.

        Raises:
            SecurityError: it is a pickle, and pickle was not switched on.
            SerializationError: the bytes are not what they claim to be, or of a content type
                nobody registered.
        """
        content_type = payload.content_type.partition(";")[0].strip().lower() or JSON
        chosen = self._by_type.get(content_type)
        if chosen is None:
            if "pickle" in content_type:
                raise SecurityError(
                    "the value is a pickle, which can run code when read: call enable_pickle() "
                    "on the client's registry if everybody who can store results is trusted"
                )
            raise _unknown("content type", content_type, sorted(self._by_type))
        data = _decompress(payload.data, payload.content_encoding)
        try:
            return chosen.decode(data)
        except Exception as error:  # as in encode; also RecursionError of nested JSON
            if _signals.raised_by(error) is not None:
                raise
            raise SerializationError(f"the value is not valid {content_type}: {error}") from error


def _unknown(what: str, name: str, known: list[str]) -> SerializationError:
    return SerializationError(
        f"no {what} {name!r} is registered here (registered: {', '.join(known)})"
    )


def _decompress(data: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return data
    if encoding not in ("gzip", "deflate"):
        raise SerializationError(f"content encoding {encoding!r} is not known here")
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # | 32: gzip or zlib, by header
    try:
        plain = inflater.decompress(data, DECOMPRESSED_BYTES_MAX)
    except zlib.error as error:
        raise SerializationError(f"the value is not valid {encoding}: {error}") from error
    if inflater.unconsumed_tail:
        raise SerializationError(f"the value is over {DECOMPRESSED_BYTES_MAX} bytes uncompressed")
    if not inflater.eof:
        raise SerializationError(f"the value's {encoding} is cut short")
    return plain


def _to_json(value: object) -> bytes:
    try:
        return _encode_json(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SerializationError(
            f"the value cannot be written as JSON ({error}): convert it, or register a serializer"
        ) from error


def _plain(value: object) -> object:
    """Write what JSON lacks and has one obvious spelling; refuse the rest."""
    import decimal  # both late: most values are plain, and few programs use these
    import uuid

    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return str(value)
    raise TypeError(f"it contains a {type(value).__name__}")


# Made once: `json.dumps` makes one for each value.
_encode_json = json.JSONEncoder(default=_plain, separators=(",", ":"), ensure_ascii=False).encode


def _from_json(data: bytes) -> Any:
    if not data:
        return None
    try:
        return _decode_json(data.decode())
    except ValueError:
        return json.loads(data)  # other encodings, and what is to be said of the rest


def _to_binary(value: object) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise SerializationError("the binary serializer takes bytes only")
    return bytes(value)


#: What clients use that are not given a registry of their own.
default_registry = Registry()
