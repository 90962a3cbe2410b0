"""The bytes of a file, before protobuf reads them.

Two bytes of a file can be an empty message, which takes a hundred bytes and more of memory, and
protobuf's errors do not say what is wrong. So the messages are counted first, without making any.
"""

import mmap
import re
from typing import Any

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from graphopt._words import count, size

Buffer = bytes | mmap.mmap
"""The content of a file."""

MOST_MESSAGES = 4_000_000
"""Nodes, attributes, tensors, dimensions and so on, together: half a gigabyte in memory."""

_MOST_FIELDS = 10_000_000  # numbers in a row are one
_MOST_NUMBERS = 2**27  # bytes; some of one byte take eight in memory, and as many to get there
_DEEPEST = 100  # protobuf's own limit
_LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}
_VARINTS = {FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64}
_VARINT = 0


def _tags(wire_type: int) -> bytes:
    """The tags of one or two bytes of the fields of a type, as a regular expression."""
    short = bytes(number << 3 | wire_type for number in range(1, 16))
    first = bytes(0x80 | low << 3 | wire_type for low in range(16))
    return b"(?:[%s]|[%s][\\x01-\\x7f])" % (re.escape(short), re.escape(first))


# Numbers, one after another, at once: a forest of trees has millions of them in one attribute.
_NUMBERS = re.compile(
    b"(?:%s[\x80-\xff]{0,9}[\x00-\x7f]|%s.{8}|%s.{4})*+" % tuple(map(_tags, (0, 1, 5))), re.DOTALL
)

_Table = dict[int, Any]
"""By the tag of a field: the table of its message, `str` for text, or `int` for numbers."""


def check_bytes(data: Buffer) -> None:
    """Refuse what is no ONNX model, or takes far more memory than it has bytes.

    Args:
        data: The content of a file.

    Raises:
        ValueError: It is damaged or truncated, has text that is not UTF-8, or too many messages.
    """
    table, position, end = _MODEL, 0, len(data)
    outer: list[tuple[_Table, int]] = []
    messages = fields = numbers = 0
    while True:
        if position < end and data[position] & 7 != _LENGTH_DELIMITED:
            stop = _NUMBERS.match(data, position, end).end()  # type: ignore[union-attr]
            numbers, position = numbers + stop - position, stop
        if position == end:
            if not outer:
                return
            table, end = outer.pop()
            continue
        fields += 1
        if fields > _MOST_FIELDS or messages > MOST_MESSAGES or numbers > _MOST_NUMBERS:
            raise ValueError(
                f"it has more than {count(_MOST_FIELDS)} fields, {count(MOST_MESSAGES)} messages "
                f"or {size(_MOST_NUMBERS)} of numbers that are no raw_data, which no network needs"
            )
        tag, start = read_number(data, position, end)
        if tag & 7 != _LENGTH_DELIMITED:
            position = _after_number(data, tag, position, start, end)
            continue
        length, start = read_number(data, start, end)
        stop = start + length
        if stop > end:
            raise ValueError(
                f"it is truncated or damaged: the field at byte {position} ends at byte {stop}, "
                f"expected at most {end}"
            )
        position, inner = stop, table.get(tag)
        if inner is str:
            _check_text(data, start, stop)
        elif inner is int:
            numbers += length
        elif inner is not None:
            messages += 1
            outer.append((table, end))
            table, position, end = inner, start, stop
            if len(outer) >= _DEEPEST:
                raise ValueError(f"it has more than {_DEEPEST} levels, which no network needs")


def _after_number(data: Buffer, tag: int, position: int, start: int, end: int) -> int:
    """Where a field ends that is not a run of bytes."""
    kind = tag & 7
    if kind == _VARINT and tag >> 3:
        return read_number(data, start, end)[1]
    if kind in _FIXED and tag >> 3 and start + _FIXED[kind] <= end:
        return start + _FIXED[kind]
    raise ValueError(f"at byte {position} there is no field of an ONNX model")


def read_number(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """A number of one to ten bytes, and where it ends."""
    if position < end and (value := data[position]) < 0x80:
        return value, position + 1
    value = shift = 0
    for index in range(position, min(end, position + 10)):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise ValueError(f"it is truncated or damaged: the number at byte {position} has no end")


def written(number: int) -> bytes:
    """A number >= 0 as a file has it: seven bits in a byte, the lowest first."""
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


def length_tag(field: int) -> bytes:
    """What stands before the length of a field."""
    return written(field << 3 | _LENGTH_DELIMITED)


def _check_text(data: Buffer, start: int, stop: int) -> None:
    try:
        data[start:stop].decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the text at byte {start} is not UTF-8: {error.reason}") from None


def _table(message: Descriptor, known: dict[str, _Table]) -> _Table:
    if message.full_name in known:
        return known[message.full_name]
    table = known[message.full_name] = {}
    for entry in message.fields:
        tag = entry.number << 3 | _LENGTH_DELIMITED
        if entry.message_type is not None:
            table[tag] = _table(entry.message_type, known)
        elif entry.type == FieldDescriptor.TYPE_STRING:
            table[tag] = str
        elif entry.type in _VARINTS:
            table[tag] = int
    return table


_MODEL = _table(onnx.ModelProto.DESCRIPTOR, {})
