"""How many elements a request's lists and maps have, told from its bytes.

    elements.check(pb.BatchStoreResultsRequest.DESCRIPTOR, raw)     raises LimitExceeded

Parsing makes an object of each, before anybody can say that there are too many: of 16 MiB,
which may be eight million empty reports, 600 MiB in 0.3 s. What is in a list may have lists
of its own, so one bound is for all of them together.
"""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any, NamedTuple

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

from resultd_server import limits
from resultd_server.errors import LimitExceeded

_ELEMENT_BYTES_MIN = 2
"""A tag and a length. Numbers in lists take four bytes each, and nobody minds them."""

_FIELDS_PER_ELEMENT = 2
"""Of any kind, that are looked at for each element that is allowed: so the look is bounded too."""

_BYTES_PER_FIELD = 256
"""As long as it takes to look at a field, bytes are counted in so many: large values are passed
over, and only where there are many fields it is dearer to look at them."""

_OBJECTS = (
    FieldDescriptorProto.TYPE_MESSAGE,
    FieldDescriptorProto.TYPE_STRING,
    FieldDescriptorProto.TYPE_BYTES,
)
_VARINT, _DELIMITED, _BEGIN, _END = 0, 2, 3, 4
_FIXED = {1: 8, 5: 4}
"""Kinds of fields, and how long they are."""

_Descriptor = Any
"""There are two of them, in Python and in C, and no common type."""


class _Field(NamedTuple):
    """A field that is a list or a map, or a message with some in it (`inside`)."""

    repeated: bool
    inside: _Fields


_Fields = dict[int, _Field]
"""By the number of the tag."""


class _TooManyFields(Exception):
    """The look at a message was not finished."""


def check(message: _Descriptor, raw: bytes) -> None:
    """Raises LimitExceeded where a message of this type has too many elements.

    That there are not is known of most by their length; of many others by a look at a few fields,
    for most is in them, or by how often their tags' first bytes are there at all.
    """
    limit = limits.ELEMENTS_PER_REQUEST
    if len(raw) <= limit * _ELEMENT_BYTES_MIN:
        return
    fields, firsts = _shape(message)
    try:
        _Look(raw, limit, len(raw) // _BYTES_PER_FIELD).over(fields)
    except _TooManyFields:
        if sum(map(raw.count, firsts)) > limit:
            _look_at_all(raw, fields, limit)


def _look_at_all(raw: bytes, fields: _Fields, limit: int) -> None:
    try:
        _Look(raw, limit, limit * _FIELDS_PER_ELEMENT).over(fields)
    except _TooManyFields:
        raise _too_many(limit + 1, limit) from None


def _too_many(found: int, limit: int) -> LimitExceeded:
    return LimitExceeded("elements", found, limit, "make several calls")


class _Look:
    """Goes over the fields of a message."""

    def __init__(self, raw: bytes, limit: int, fields_max: int) -> None:
        self._raw = raw
        self._limit = limit
        self._elements = 0
        self._fields_left = fields_max

    def over(self, fields: _Fields) -> None:
        """Counts them. Raises LimitExceeded at one too many, _TooManyFields."""
        with contextlib.suppress(IndexError):  # malformed: who parses comes no further either
            self._into(fields, 0, len(self._raw))

    def _into(self, fields: _Fields, at: int, end: int) -> None:
        """Counts those between two places. Raises IndexError where they do not end there."""
        raw, groups = self._raw, 0
        while at < end:
            tag = raw[at]
            at += 1
            if tag > 0x7F:
                tag, at = _number(raw, at - 1)
            kind = tag & 7
            if kind == _DELIMITED:
                size = raw[at]
                at += 1
                if size > 0x7F:
                    size, at = _number(raw, at - 1)
                begin, at = at, at + size
                found = fields.get(tag)
                if found is not None and not groups:
                    if at > end:
                        raise IndexError
                    self._elements += found.repeated
                    if found.inside:
                        self._into(found.inside, begin, at)
            elif kind == _VARINT:
                _, at = _number(raw, at)
            else:
                at += _FIXED.get(kind, 0)
                groups += (kind == _BEGIN) - (kind == _END)  # nobody here has any
            if self._elements > self._limit:
                raise _too_many(self._elements, self._limit)
            self._fields_left -= 1
            if self._fields_left < 0:
                raise _TooManyFields
        if at > end:
            raise IndexError


def _number(raw: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends. Raises IndexError where it does not."""
    number = 0
    for shift in range(0, 70, 7):
        byte = raw[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise IndexError


@cache  # one for each method
def _shape(message: _Descriptor) -> tuple[_Fields, tuple[bytes, ...]]:
    """The fields to look at, and what the tags of lists and maps begin with."""
    tags: set[int] = set()
    fields = _fields_of(message, tags, ())
    # A tag may be longer than it must be: then its first byte says that there is more.
    longer = {tag & 0x7F | 0x80 for tag in tags}
    return fields, tuple(bytes((first,)) for first in {tag for tag in tags if tag < 0x80} | longer)


def _fields_of(message: _Descriptor, tags: set[int], above: tuple[str, ...]) -> _Fields:
    if message.full_name in above:  # a failure's cause; there are no lists in one
        return {}
    above = (*above, message.full_name)
    described = DescriptorProto()
    message.CopyToProto(described)
    found: _Fields = {}
    for field in described.field:
        if field.type not in _OBJECTS:
            continue
        repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
        inner = message.fields_by_number[field.number].message_type
        inside = _fields_of(inner, tags, above) if inner is not None else {}
        tag = field.number << 3 | _DELIMITED
        if repeated:
            tags.add(tag)
        if repeated or inside:
            found[tag] = _Field(repeated, inside)
    return found
