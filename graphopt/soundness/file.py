"""The file of a model that nobody vouches for, read into a proto."""

from pathlib import Path

import onnx

from graphopt import mapped_values
from graphopt._memory import give_back_memory
from graphopt._seal import check_seal, without_seal
from graphopt._words import size
from graphopt.soundness.leaving import LEAST, without_values
from graphopt.soundness.wire import Buffer, check_bytes

_TWO_GIB = 2**31
_BEGIN = 512  # bytes of a file that tell what it is, if it is no model
_SAFETENSORS_HEADER = 8


def read_model(path: Path, *, leaving: bool = False) -> onnx.ModelProto:
    """The content of a file, of which nothing is checked but that it is one of ONNX.

    Args:
        path: Of the file.
        leaving: Leave the values of large initializers in a large file, for `mapped_values`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no ONNX model, takes far more memory than it has bytes, or is not what
            graphopt wrote there.
    """
    length = path.stat().st_size
    if length >= _TWO_GIB:
        raise ValueError(
            f"it has {size(length)}, and an ONNX file holds less than 2 GiB; export it with its "
            "values in a file beside it (external data)"
        )
    leaving = leaving and length >= LEAST and mapped_values.CAN_BE
    data: Buffer
    if leaving:
        data = mapped_values.mapping(path)
    else:
        with path.open("rb") as file:
            data = file.read(length)
    if other := _other_kind(data):
        raise ValueError(other)
    check_bytes(data)
    check_seal(data)
    try:
        content = without_values(data, path) if leaving else bytes(data)
        model = without_seal(onnx.load_model_from_string(content))
    except Exception as error:  # noqa: BLE001 - protobuf's, which depends on its implementation
        raise ValueError(f"it is damaged: {error}") from None
    del data, content
    give_back_memory(length)
    return model


def _other_kind(data: Buffer) -> str | None:
    """What a file is, if it begins like something else that people have."""
    begin = data[:_BEGIN]
    if not begin:
        return "it is empty"
    if begin[4:8] == b"ODTC":
        return "it is a checkpoint of on-device training"
    if begin[4:8] == b"ORTM":
        return (
            "it is a model in ONNX Runtime's own format (.ort); use the .onnx file that it was "
            "made from"
        )
    header = int.from_bytes(begin[:_SAFETENSORS_HEADER], "little")
    if begin[_SAFETENSORS_HEADER : _SAFETENSORS_HEADER + 2] == b'{"' and header < len(data):
        return "it is a safetensors file, such as a checkpoint of a session"
    if begin.startswith(b"PK\x03\x04"):
        return "it is a ZIP archive, such as a model or checkpoint of PyTorch, or arrays of NumPy"
    if begin.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    if _is_text(begin):
        return "it is text, expected ONNX's binary format"
    return None


def _is_text(begin: bytes) -> bool:
    try:
        text = begin.decode("ascii")
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\t\r\n" for letter in text)
