"""Inputs that come near to what is expected: messages made from descriptors, and bytes changed."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.message import Message

from tests.support.request_fields import is_repeated

INTERESTING = (0, 1, -1, 127, 128, 255, 256, 10_000, 10_001, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
TEXTS = ("", "t", "g", "\0", "é" * 128, "x" * 255, "x" * 256, "\ud7ff", "\U0010ffff", "a\nb", "*")
DEPTH_MAX = 4


def message(kind: type[Message], dice: random.Random, depth: int = 0) -> Message:
    """A message with some of its fields, and in them what is on the edge."""
    made = kind()
    for field in kind.DESCRIPTOR.fields:
        if dice.random() < 0.5 or depth > DEPTH_MAX:
            continue
        values = [_value(field, dice, depth) for _ in range(dice.choice((1, 1, 2, 5)))]
        _put(made, field, values)
    return made


def _put(made: Message, field: Any, values: list[Any]) -> None:
    holder = getattr(made, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        for number, value in enumerate(values):
            if entry.message_type is not None:
                holder[f"k{number}"].SetInParent()
            else:
                holder[str(value)[:20]] = f"v{number}"
    elif is_repeated(field):
        holder.extend(values)
    elif field.message_type is not None:
        holder.MergeFrom(values[0])
    else:
        setattr(made, field.name, values[0])


def _value(field: Any, dice: random.Random, depth: int) -> Any:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            return dice.choice(TEXTS)
        return message(field.message_type._concrete_class, dice, depth + 1)
    if field.cpp_type == field.CPPTYPE_STRING:
        if field.type == field.TYPE_BYTES:
            return dice.randbytes(dice.choice((0, 1, 13, 300)))
        return dice.choice(TEXTS)
    if field.cpp_type == field.CPPTYPE_ENUM:
        return dice.choice([*(value.number for value in field.enum_type.values), 99, -1])
    if field.cpp_type == field.CPPTYPE_BOOL:
        return dice.random() < 0.5
    return _number(field, dice)


def _number(field: Any, dice: random.Random) -> Any:
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return dice.choice((0.0, 1.5, float("inf"), float("nan")))
    unsigned = field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64)
    bits = 32 if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_INT32) else 64
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return min(max(dice.choice(INTERESTING), low), high)


def data(raw: bytes, dice: random.Random) -> bytes:
    """The bytes with one to four changes: bits, insertions, cuts, repeats."""
    out = bytearray(raw)
    for _ in range(dice.randrange(1, 5)):
        at = dice.randrange(len(out) + 1)
        change = dice.randrange(5)
        if change == 0 and at < len(out):
            out[at] ^= 1 << dice.randrange(8)
        elif change == 1:
            out[at:at] = dice.randbytes(dice.randrange(1, 9))
        elif change == 2:
            del out[at : at + dice.randrange(1, 9)]
        elif change == 3:
            out[at:at] = out[at : at + dice.randrange(1, 40)]
        elif at < len(out):
            out[at] = dice.choice((0, 0x7F, 0x80, 0xFF, 0x2F, 0x3A))
    return bytes(out)
