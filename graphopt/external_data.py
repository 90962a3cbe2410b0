"""Values that a model keeps in files beside it.

Anybody may have written the model, so its files are looked for beside it and nowhere else: not in
the current folder, and not where ``..``, an absolute path or a symbolic link leads.
"""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import TensorProto

from graphopt._words import shown, size
from graphopt.dtypes import BITS, bytes_of
from graphopt.graphs import proto_initializers
from graphopt.mapped_values import can_be_left, is_left, leave
from graphopt.soundness.functions import check_functions
from graphopt.soundness.nodes import places, tensors
from graphopt.soundness.opsets import check_opsets
from graphopt.soundness.tensors import check_dimensions, check_tensor

_LONGEST = 4096  # characters of the path of a file


def load_values(model: onnx.ModelProto, path: Path, *, leaving: bool = False) -> list[Path]:
    """Read into a model what its tensors have in files, in all places that hold tensors.

    These are initializers, also sparse ones, and attributes, of graphs, of those in nodes, of
    functions, and of what ``training_info`` has.

    Args:
        model: The model, which is changed.
        path: Its file.
        leaving: Leave the values of large initializers where they are, for `mapped_values`.

    Returns:
        The files, each once.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is not in the folder of the model, or has too few bytes.
    """
    files: dict[Path, None] = {}
    for tensor in proto_initializers(model) if leaving else ():
        is_beside = tensor.data_location == TensorProto.EXTERNAL and not is_left(tensor)
        if is_beside and can_be_left(tensor):
            where = f"initializer '{shown(tensor.name)}'"
            file = checked_file(_entries(tensor)["location"], where, path)
            leave(tensor, file, *_extent(tensor, where, file))
            files[file] = None
    for place in places(model):
        for tensor, where in tensors(place):
            if tensor.data_location == TensorProto.EXTERNAL and not is_left(tensor):
                file = checked_file(_entries(tensor)["location"], where, path)
                offset, length = _extent(tensor, where, file)
                with file.open("rb") as opened:
                    opened.seek(offset)
                    tensor.raw_data = opened.read(length)
                tensor.ClearField("data_location")
                del tensor.external_data[:]
                files[file] = None
    return list(files)


def check_values(model: onnx.ModelProto) -> None:
    """Refuse a model with a tensor that has not the values of its shape, or with endless functions.

    Raises:
        ValueError: A tensor has too few or too many bytes, or has them in a file that was not
            loaded; a function calls itself; an opset cannot be.
    """
    check_opsets(model)
    found = list(places(model))
    if model.functions:
        check_functions(model, found)
    for place in found:
        for tensor, where in tensors(place):
            if is_left(tensor):
                check_dimensions(tensor.dims, where)
                continue
            if tensor.data_location == TensorProto.EXTERNAL:
                raise ValueError(
                    f"{where} has its values in the file '{shown(_entries(tensor)['location'])}', "
                    "which was not loaded; give the path of the model, or load it with "
                    "onnx.load(path), which reads them"
                )
            check_tensor(tensor, where)
            if 0 not in tensor.dims and not _is_filled(tensor):
                raise ValueError(f"{where} of shape {list(tensor.dims)} has no values")


def checked_file(location: str, where: str, path: Path) -> Path:
    """The file beside a model that a tensor names.

    Beside it is what stands in its folder; or, where the model is a link, what does so after
    following both, as in caches of downloads.

    Args:
        location: As the tensor names it.
        where: What the tensor is called in errors.
        path: The file of the model.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It would be somewhere else, or is no file.
    """
    named = f"{where} has its values in '{shown(location)}'"
    ways = (PurePosixPath(location), PureWindowsPath(location))
    if (
        not location
        or any(way.anchor or ".." in way.parts for way in ways)
        or "\0" in location
        or len(location) > _LONGEST
    ):
        raise ValueError(
            f"{named}, expected a file in the folder of the model; put it there, and export the "
            "model again"
        )
    file = path.parent / location
    real = Path(os.path.realpath(file))
    folders = {Path(os.path.realpath(path.parent)), Path(os.path.realpath(path)).parent}
    if not any(real.is_relative_to(folder) for folder in folders):
        raise ValueError(
            f"{named}, which is a link to somewhere else ('{real}'); put a copy in its place"
        )
    if not real.exists():
        raise FileNotFoundError(
            f"'{path}': no file '{file}', which holds the values of {where}; put it beside the "
            "model"
        )
    if not real.is_file():
        raise ValueError(f"{named}, which is no regular file")
    return real


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {"location": ""} | {entry.key: entry.value for entry in tensor.external_data}


def _extent(tensor: TensorProto, where: str, file: Path) -> tuple[int, int]:
    """Where the values of a tensor begin in a file, and how many bytes they are, if they are."""
    if tensor.data_type not in BITS:
        raise ValueError(f"{where} has its values in a file, which those of its type cannot be")
    check_dimensions(tensor.dims, where)
    expected = bytes_of(tensor)
    entries = _entries(tensor)
    offset = _number(entries.get("offset", "0"), "offset", where)
    length = _number(entries.get("length", str(expected)), "length", where)
    if length != expected:
        raise ValueError(
            f"{where} of shape {list(tensor.dims)} has {size(length)} in a file, expected "
            f"{size(expected)}"
        )
    if offset + length > (there := file.stat().st_size):
        raise ValueError(
            f"{where} has its values at bytes {offset} to {offset + length} of '{file}', which "
            f"has {there}: it is truncated, or of another model"
        )
    return offset, length


def _number(text: str, key: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 19:
        raise ValueError(f"{where} has the {key} '{shown(text)}' in a file, expected a number")
    return int(text)


def _is_filled(tensor: TensorProto) -> bool:
    return bool(
        tensor.raw_data
        or tensor.float_data
        or tensor.int32_data
        or tensor.int64_data
        or tensor.double_data
        or tensor.uint64_data
        or tensor.string_data
    )
