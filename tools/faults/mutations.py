"""Ways to damage a file: its bytes, or a message of protobuf somewhere inside it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_NUMBERS = (0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
_TEXTS = (
    "",
    "x",
    "ai.onnx",
    "../x",
    "/etc/passwd",
    "\0",
    "a" * 100_000,
    "{",
    "[]",
    "null",
    "-1e999",
)
_UNSIGNED = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
_FLOATS = (0.0, -1.0, 1e30, float("nan"), float("inf"))


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """A file with one to a few faults.

    Args:
        rng: What chooses them.
        data: The file; what begins like an ONNX model is mostly damaged as one.
    """
    if data[:1] == b"\x08" and rng.random() < 0.75:
        model = onnx.load_model_from_string(data)
        for _ in range(rng.integers(1, 4)):
            _change(rng, model)
        return bytes(model.SerializeToString())
    ways = (_truncated, _flipped, _spliced, _zeroed, _replaced)
    return ways[rng.integers(len(ways))](rng, data)


def _truncated(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: rng.integers(0, len(data))]


def _flipped(rng: np.random.Generator, data: bytes) -> bytes:
    """Bits, half of the time near the beginning or the end, where a file says what it is."""
    changed = bytearray(data)
    begin, end = ((0, 2000), (len(data) - 2000, len(data)), (0, len(data)))[rng.integers(3)]
    for place in rng.integers(max(begin, 0), min(end, len(data)), rng.integers(1, 20)):
        changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


def _spliced(rng: np.random.Generator, data: bytes) -> bytes:
    first, second, third = np.sort(rng.integers(0, len(data), 3))
    return data[:first] + data[second : min(third, second + 500)] + data[first:]


def _zeroed(rng: np.random.Generator, data: bytes) -> bytes:
    start = rng.integers(0, len(data))
    length = int(rng.integers(1, 200))
    fill = (b"\0", b"\xff", b"\x80")[rng.integers(3)]
    return data[:start] + fill * length + data[start + length :]


def _replaced(rng: np.random.Generator, data: bytes) -> bytes:
    start = rng.integers(0, len(data))
    return data[:start] + rng.bytes(int(rng.integers(0, 50))) + data[start + rng.integers(0, 50) :]


def _change(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    """One field of one message, each kind of message as likely as the others."""
    by_kind: dict[str, list[Message]] = {}
    for message in _messages(model):
        by_kind.setdefault(message.DESCRIPTOR.name, []).append(message)
    kinds = sorted(by_kind)
    messages = by_kind[kinds[rng.integers(len(kinds))]]
    message = messages[rng.integers(len(messages))]
    fields = message.DESCRIPTOR.fields
    there = [field for field, _ in message.ListFields()]
    field = (there or fields)[rng.integers(len(there or fields))]
    if rng.random() < 0.15:
        field = fields[rng.integers(len(fields))]
    if field.is_repeated:
        _change_list(rng, message, field, messages)
    elif field.message_type is not None:
        _change_message(rng, message, field, messages)
    else:
        setattr(message, field.name, _scalar(rng, field, getattr(message, field.name)))


def _change_list(
    rng: np.random.Generator, message: Message, field: FieldDescriptor, others: list[Message]
) -> None:
    entries: Any = getattr(message, field.name)
    if not len(entries):
        entries.MergeFrom(getattr(others[rng.integers(len(others))], field.name))
        return
    place = int(rng.integers(len(entries)))
    match rng.integers(4):
        case 0:
            del entries[place]
        case 1:
            entries.append(entries[place])
        case 2 if field.message_type is not None:
            entries[place].CopyFrom(entries[int(rng.integers(len(entries)))])
        case 3:
            del entries[:]
        case _ if field.message_type is None:
            entries[place] = _scalar(rng, field, entries[place])


def _change_message(
    rng: np.random.Generator, message: Message, field: FieldDescriptor, others: list[Message]
) -> None:
    if rng.random() < 0.5:
        message.ClearField(field.name)
    else:
        other = others[rng.integers(len(others))]
        if other is not message:
            getattr(message, field.name).CopyFrom(getattr(other, field.name))


def _scalar(rng: np.random.Generator, field: FieldDescriptor, value: Any) -> Any:
    """Another value of a field that is no message."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _truncated(rng, value) if len(value) and rng.random() < 0.5 else rng.bytes(7)
    if field.type == FieldDescriptor.TYPE_STRING:
        start = rng.integers(0, len(value) + 1)
        cut = value[:start] + _TEXTS[rng.integers(len(_TEXTS))] + value[start + 1 :]
        return cut if rng.random() < 0.5 else _TEXTS[rng.integers(len(_TEXTS))]
    if field.enum_type is not None:
        return int(rng.choice([entry.number for entry in field.enum_type.values]))
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return _FLOATS[rng.integers(len(_FLOATS))]
    number = _NUMBERS[rng.integers(len(_NUMBERS))] if rng.random() < 0.7 else value + 1
    small = field.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT32)
    low = 0 if field.type in _UNSIGNED else -(2**31) if small else -(2**63)
    return min(max(number, low), 2**31 - 1 if small else 2**63 - 1)


def _messages(message: Message) -> Iterator[Message]:
    """A message and all inside it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)
