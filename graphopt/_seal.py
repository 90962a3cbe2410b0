"""The digest of a model at the end of its file, as one more entry of its metadata.

A program that changes the model writes its parts in the order of their numbers, which puts the
entry elsewhere: then it says nothing any more, and nothing is compared.
"""

import hashlib

import onnx

KEY = "graphopt.sha256"


def sealed(data: bytes) -> tuple[bytes, bytes]:
    """A model as bytes, and what stands after it in a file: its digest."""
    return data, _seal(data)


def check_seal(data: bytes) -> None:
    """Compare a file with the digest that it ends with, if it does.

    Raises:
        ValueError: They differ.
    """
    length = len(_seal(b""))
    if KEY.encode() in data[-length:] and data[-length:] != _seal(memoryview(data)[:-length]):
        raise ValueError(
            "it is not what graphopt wrote: take another copy, or build it again; if it was "
            f"changed on purpose, remove '{KEY}' from its metadata"
        )


def without_seal(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model, from whose metadata the digest of its file is taken out."""
    for entry in [entry for entry in model.metadata_props if entry.key == KEY]:
        model.metadata_props.remove(entry)
    return model


def _seal(data: bytes | memoryview) -> bytes:
    """The entry, which names itself at both ends, so that it is known when a part is damaged."""
    model = onnx.ModelProto()
    model.metadata_props.add(key=KEY, value=f"{hashlib.sha256(data).hexdigest()} {KEY}")
    return bytes(model.SerializeToString())
