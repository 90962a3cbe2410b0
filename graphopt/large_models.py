"""Writing models of any size: what one file cannot hold has its values in another beside it."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import onnx
from google.protobuf.message import EncodeError, Message
from onnx import TensorProto

from graphopt._file_sets import write_together
from graphopt._files import PathLike, check_target, write_atomically
from graphopt._seal import sealed
from graphopt._words import size
from graphopt.dtypes import BITS

MOST = 2**31
"""Bytes that protobuf can write: one file holds less."""

DATA = ".data"
"""The end of the name of the file with the values, after that of the model."""

_LEAST = 1024  # bytes of a tensor that is worth a place in the other file
_ALIGNMENT = 4096  # of the tensors in that file, so that they can be mapped into memory


def save_model(model: onnx.ModelProto, path: PathLike, *, seal: bool = False) -> None:
    """Write a model atomically; where it has 2 GiB or more, with its values in ``<path>.data``.

    Both files are replaced together, or neither. They must stay in one folder.

    Args:
        model: The model.
        path: Of the file.
        seal: End a file that has all values with its digest.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: It cannot be written; the old files are as they were.
        ValueError: It has 2 GiB or more without its initializers.
    """
    if values_of(model) < MOST and (data := _serialized(model)) is not None:
        pieces = sealed(data) if seal else (data,)
        write_atomically(path, lambda part: _write(part, pieces))
        return
    target = check_target(path)
    names = [f"{target.name}{DATA}", target.name]
    write_together(
        target.parent, lambda folder: write_beside(model, folder / target.name), names, target.name
    )


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(pieces)


def write_beside(model: onnx.ModelProto, path: Path) -> None:
    """Write a model and, tensor by tensor, its values to the file beside it.

    Raises:
        ValueError: It has 2 GiB or more without its initializers.
    """
    with Path(f"{path}{DATA}").open("wb") as file:

        def moved(tensor: TensorProto) -> TensorProto:
            begin = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
            file.seek(begin)
            length = file.write(tensor.raw_data)
            other = without_values(tensor)
            other.data_location = TensorProto.EXTERNAL
            entries = {"location": f"{path.name}{DATA}", "offset": begin, "length": length}
            for key, value in entries.items():
                other.external_data.add(key=key, value=str(value))
            return other

        data = _serialized(mapped(model, moved))
    if data is None:
        raise ValueError(
            f"cannot write '{path}': it has {size(MOST)} or more without its initializers, and an "
            "ONNX file holds less"
        )
    path.write_bytes(data)


def values_of(model: onnx.ModelProto) -> int:
    """The bytes of the initializers that have them as raw data."""
    graphs = [model.graph, *(info.initialization for info in model.training_info)]
    return sum(_bytes(tensor) for graph in graphs for tensor in graph.initializer)


def size_of(model: onnx.ModelProto) -> int:
    """The bytes of a model, about so many where protobuf cannot count them."""
    values = values_of(model)
    if values < MOST and (data := _serialized(model)) is not None:
        return len(data)
    return values + len(_serialized(mapped(model, without_values)) or b"")


def without_values(tensor: TensorProto) -> TensorProto:
    """The name, shape and dtype of a tensor."""
    copy = TensorProto(dims=tensor.dims, metadata_props=tensor.metadata_props)
    for field in ("name", "data_type", "doc_string"):
        if tensor.HasField(field):
            setattr(copy, field, getattr(tensor, field))
    return copy


def mapped(
    model: onnx.ModelProto, move: Callable[[TensorProto], TensorProto], least: int = _LEAST
) -> onnx.ModelProto:
    """A copy of a model with other tensors in place of its large initializers.

    Args:
        model: The model, of which no value is copied that is replaced.
        move: Gives the tensor in place of one.
        least: The bytes of raw data from which on an initializer is replaced.
    """
    copy = onnx.ModelProto()
    _copy(model, copy, {"graph", "training_info"})
    _copy_graph(model.graph, copy.graph, move, least)
    for info in model.training_info:
        own = copy.training_info.add()
        _copy(info, own, {"initialization"})
        if info.HasField("initialization"):
            _copy_graph(info.initialization, own.initialization, move, least)
    return copy


def _copy_graph(
    graph: onnx.GraphProto,
    copy: onnx.GraphProto,
    move: Callable[[TensorProto], TensorProto],
    least: int,
) -> None:
    _copy(graph, copy, {"initializer"})
    for tensor in graph.initializer:
        copy.initializer.append(move(tensor) if _bytes(tensor) >= least else tensor)


def _copy(message: Message, copy: Message, left_out: set[str]) -> None:
    """Copy the fields of a message, but for some."""
    for field, value in message.ListFields():
        if field.name in left_out:
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(copy, field.name, value)
        else:  # a message, or several values
            getattr(copy, field.name).MergeFrom(value)


def _bytes(tensor: TensorProto) -> int:
    """Those of raw data, which are not looked at."""
    if not tensor.HasField("raw_data") or tensor.data_type not in BITS:
        return 0
    return math.ceil(math.prod(map(int, tensor.dims)) * BITS[tensor.data_type] / 8)


def _serialized(model: onnx.ModelProto) -> bytes | None:
    """The bytes of a model, or None where they are too many."""
    try:
        data: bytes = model.SerializeToString()
    except EncodeError:
        return None
    return data if len(data) < MOST else None
