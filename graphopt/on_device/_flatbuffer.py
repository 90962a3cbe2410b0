"""FlatBuffers, as far as the checkpoints of ONNX Runtime have them.

Not the package ``flatbuffers``: the Python modules that it generates trust every offset of a file,
and need several times its size in memory. Here each offset is checked, a reader does no more work
than the size of the file allows, and arrays are written without a copy.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_LARGEST_FILE = 2**31 - 1  # ONNX Runtime's limit


Chunk = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Numbers:
    """A vector of numbers: how many, and their bytes."""

    count: int
    content: Chunk


# What is written: text, numbers, a table, or a vector of such things. A field of a table may also
# be a number, as bytes; one that is None is left out.
Written = str | Numbers | tuple["Written | bytes | None", ...] | Sequence["Written"]


def laid_out(identifier: bytes, root: Written) -> list[Chunk]:
    """A FlatBuffer in pieces, from its root to its leaves, so that arrays need no copy.

    Raises:
        ValueError: It would be larger than ONNX Runtime can read.
    """
    writer = _Writer()
    header = bytearray(4) + identifier
    writer.append(header, 4)
    struct.pack_into("<I", header, 0, writer.write(root))
    return writer.chunks


class _Writer:
    """Writes one thing after another, each before what it refers to."""

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self._size = 0

    def write(self, what: Written) -> int:
        """Write something and all that it refers to; returns its position."""
        match what:
            case str():
                text = what.encode()
                return self.append(struct.pack("<I", len(text)) + text + b"\0", 4)
            case Numbers():  # aligned to 8 bytes
                at = self.append(struct.pack("<I", what.count), 8, ahead=4)
                self.append(what.content, 1)
                return at
            case tuple():
                return self._write_table(what)
            case _:
                body = bytearray(struct.pack("<I", len(what)) + bytes(4 * len(what)))
                at = self.append(body, 4)
                for entry, item in enumerate(what, 1):
                    self._refer(body, at, 4 * entry, item)
                return at

    def append(self, chunk: Chunk, alignment: int, ahead: int = 0) -> int:
        """Add a chunk of which the byte ``ahead`` is aligned, and return its position."""
        padding = -(self._size + ahead) % alignment
        at = self._size + padding
        self._size = at + len(chunk)
        if self._size > _LARGEST_FILE:
            raise ValueError(
                f"the checkpoint takes more than {_LARGEST_FILE} bytes, the limit of ONNX "
                "Runtime for one file; fewer or smaller parameters fit"
            )
        self.chunks += [bytes(padding), chunk]
        return at

    def _write_table(self, fields: tuple[Written | bytes | None, ...]) -> int:
        """A table whose slots have these fields, the largest first for alignment."""
        inline = {
            slot: field if isinstance(field, bytes) else bytes(4)
            for slot, field in enumerate(fields)
            if field is not None
        }
        places = [0] * len(fields)
        body = bytearray(4)
        for slot in sorted(inline, key=lambda slot: -len(inline[slot])):
            places[slot] = len(body)
            body += inline[slot]
        vtable = struct.pack(f"<HH{len(places)}H", 4 + 2 * len(places), len(body), *places)
        at_vtable = self.append(vtable, 2)
        at = self.append(body, 8, ahead=4)
        struct.pack_into("<i", body, 0, at - at_vtable)
        for place, field in zip(places, fields, strict=True):
            if field is not None and not isinstance(field, bytes):
                self._refer(body, at, place, field)
        return at

    def _refer(self, body: bytearray, at: int, place: int, what: Written) -> None:
        """Write something, and in a chunk at a position how far away it is."""
        struct.pack_into("<I", body, place, self.write(what) - (at + place))


class DamagedError(Exception):
    """What is wrong with a file."""


class Buffer:
    """The bytes of a file, which allows each to be used about once.

    In a FlatBuffer many offsets may lead to one place, by which a small file could ask for
    endless work. Tables and raw data therefore count against the size of the file.
    """

    def __init__(self, content: np.ndarray) -> None:
        """Read from these bytes."""
        self.content = content
        self.size = content.size
        self._unused = content.size

    def number(self, form: str, at: int) -> Any:
        """The number at a byte, of a format of `struct`."""
        self.require(at, struct.calcsize(form))
        return struct.unpack_from(form, self.content.data, at)[0]

    def require(self, at: int, size: int) -> None:
        """Refuse bytes that the file does not have."""
        if at < 0 or size < 0 or at + size > self.size:
            raise DamagedError(
                f"it is cut off or damaged: {size} bytes at {at} lie outside its {self.size} bytes"
            )

    def use(self, size: int) -> None:
        """Count bytes as read; there are no more than the file has."""
        self._unused -= size
        if self._unused < 0:
            raise DamagedError("it is damaged: its parts overlap")

    def copy(self, at: int, size: int) -> np.ndarray:
        """Bytes that belong to the caller."""
        self.require(at, size)
        self.use(size)
        return np.array(self.content[at : at + size])


class Table:
    """A table of a FlatBuffer; slots are numbered as in the schema."""

    def __init__(self, buffer: Buffer, at: int) -> None:
        """The table at a byte."""
        buffer.use(8)  # its offset to the vtable, and the offset that led here
        self.buffer = buffer
        self._at = at
        self._vtable = at - buffer.number("<i", at)
        self._vtable_size = buffer.number("<H", self._vtable)
        self._size = buffer.number("<H", self._vtable + 2)
        if self._vtable_size < 4 or self._size < 4:
            raise DamagedError(f"it is damaged: no table is at byte {at}")
        buffer.require(self._vtable, self._vtable_size)
        buffer.require(at, self._size)

    def number(self, slot: int, form: str, default: int = 0) -> Any:
        """A number; the default where the table has none."""
        at = self._field(slot, struct.calcsize(form))
        return default if at is None else self.buffer.number(form, at)

    def table(self, slot: int) -> "Table | None":
        """A table, if there is one."""
        at = self._target(slot)
        return None if at is None else Table(self.buffer, at)

    def tables(self, slot: int) -> "Iterable[Table]":
        """A vector of tables; none if it is missing."""
        at, count = self.vector(slot, 4)
        for entry in range(at, at + 4 * count, 4):
            yield Table(self.buffer, entry + self.buffer.number("<I", entry))

    def text(self, slot: int, what: str) -> str:
        """A string, which must be there; ``what`` says what it is."""
        if self._target(slot) is None:
            raise DamagedError(f"it is damaged: {what} is missing")
        at, count = self.vector(slot, 1)
        self.buffer.use(count)
        try:
            return self.buffer.content[at : at + count].tobytes().decode()
        except UnicodeDecodeError:
            raise DamagedError(f"it is damaged: {what} is not UTF-8") from None

    def vector(self, slot: int, item_size: int) -> tuple[int, int]:
        """Where a vector's items begin, and their count; none if the vector is missing."""
        at = self._target(slot)
        if at is None:
            return 0, 0
        count = self.buffer.number("<I", at)
        self.buffer.require(at + 4, count * item_size)
        return at + 4, count

    def has(self, slot: int) -> bool:
        """Whether something other than a number is there."""
        return self._target(slot) is not None

    def _target(self, slot: int) -> int | None:
        at = self._field(slot, 4)
        return None if at is None else at + int(self.buffer.number("<I", at))

    def _field(self, slot: int, size: int) -> int | None:
        entry = 4 + 2 * slot
        if entry + 2 > self._vtable_size:
            return None
        offset = self.buffer.number("<H", self._vtable + entry)
        if offset == 0:
            return None
        if offset < 4 or offset + size > self._size:
            raise DamagedError(
                f"it is damaged: a field of the table at byte {self._at} has no room"
            )
        return self._at + int(offset)
