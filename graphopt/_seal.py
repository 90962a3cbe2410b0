"""The digest of a model at the end of its file, as one more entry of its metadata.

A program that changes the model writes its parts in the order of their numbers, which puts the
entry elsewhere: then it says nothing any more, and nothing is compared.
"""

import hashlib
import mmap
from collections.abc import Iterable, Iterator

import onnx

KEY = "graphopt.sha256"

_BLOCK = 2**26  # bytes, whole pages, that are looked at at once

Piece = bytes | memoryview


def sealed(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces of a model, and what stands after them in a file: their digest."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        yield piece
    yield _seal(digest.hexdigest())


def check_seal(data: bytes | mmap.mmap) -> None:
    """Compare a file with the digest that it ends with, if it does.

    Raises:
        ValueError: They differ.
    """
    length = len(_seal(hashlib.sha256().hexdigest()))
    if KEY.encode() not in data[-length:]:
        return
    digest = hashlib.sha256()
    with memoryview(data) as content:
        for start in range(0, len(data) - length, _BLOCK):
            digest.update(content[start : min(start + _BLOCK, len(data) - length)])
            if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                data.madvise(mmap.MADV_DONTNEED, start, min(_BLOCK, len(data) - start))
    if data[-length:] != _seal(digest.hexdigest()):
        raise ValueError(
            "it is not what graphopt wrote: take another copy, or build it again; if it was "
            f"changed on purpose, remove '{KEY}' from its metadata"
        )


def without_seal(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model, from whose metadata the digest of its file is taken out."""
    for entry in [entry for entry in model.metadata_props if entry.key == KEY]:
        model.metadata_props.remove(entry)
    return model


def _seal(digest: str) -> bytes:
    """The entry, which names itself at both ends, so that it is known when a part is damaged."""
    model = onnx.ModelProto()
    model.metadata_props.add(key=KEY, value=f"{digest} {KEY}")
    return bytes(model.SerializeToString())
