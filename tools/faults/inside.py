"""Damages what is inside a file, behind the checksums and sizes that would find it."""

import io
import json
import zipfile
from collections.abc import Callable

import numpy as np
import onnx

from graphopt import checkpoint
from tools.faults.mutations import damaged

Mutate = Callable[[bytes, int], bytes]
"""Another text of at most so many bytes."""

_MOST = 20_000  # bytes of what is inside


def damaged_inside(seed: int, data: bytes, most: int, mutate: Mutate) -> bytes:
    """A file with a fault, by one of several ways that suit its kind.

    Args:
        seed: Of the way.
        data: The file.
        most: The most bytes that it may have.
        mutate: Damages bytes.
    """
    rng = np.random.default_rng(seed)
    ways: list[Callable[[np.random.Generator, bytes, Mutate], bytes]] = [_bytes, _message]
    if data[:1] == b"\x08":
        ways += [_metadata, _metadata]
    elif data[:2] == b"PK":
        ways += [_entry] * 4
    elif data[8:10] == b'{"':
        ways += [_header] * 3
    try:
        changed = ways[rng.integers(len(ways))](rng, data, mutate)
    except Exception:  # noqa: BLE001 - damaged before, so that there is no inside
        changed = mutate(data, most)
    return changed[:most]


def _bytes(_: np.random.Generator, data: bytes, mutate: Mutate) -> bytes:
    return mutate(data, len(data) + 100)


def _message(rng: np.random.Generator, data: bytes, _: Mutate) -> bytes:
    return damaged(rng, data)


def _metadata(rng: np.random.Generator, data: bytes, mutate: Mutate) -> bytes:
    """A model whose metadata has another value."""
    model = onnx.load_model_from_string(data)
    entry = model.metadata_props[rng.integers(len(model.metadata_props))]
    entry.value = _text(entry.value, mutate)
    return bytes(model.SerializeToString())


def _entry(rng: np.random.Generator, data: bytes, mutate: Mutate) -> bytes:
    """An archive of which one entry is another, with its right checksum."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    changed = list(entries)[rng.integers(len(entries))]
    entries[changed] = mutate(entries[changed], _MOST)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def _header(rng: np.random.Generator, data: bytes, mutate: Mutate) -> bytes:
    """A safetensors file with another header, of the right length and with the right checksum."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    metadata = header.get("__metadata__", {})
    if metadata and rng.random() < 0.6:
        key = list(metadata)[rng.integers(len(metadata))]
        metadata[key] = _text(metadata[key], mutate)
        if "checksum" in metadata:
            metadata["checksum"] = checkpoint.checksum_of(metadata)
        text = json.dumps(header).encode()
    else:
        text = mutate(data[8:end], _MOST)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _text(text: str, mutate: Mutate) -> str:
    return mutate(text.encode(), _MOST).decode(errors="ignore")
