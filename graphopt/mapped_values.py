"""Large values of a model that stay where they are, in a file or in an array of somebody.

A tensor whose values were left is external, with the whole path of its file. Its metadata says
which content is meant, and that this process has left it there: what a model from outside says of
itself is not believed. A file that is replaced stays what it was for those who look at it; one that
is written to is refused.
"""

import math
import mmap
import os
import secrets
import sys
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from graphopt.dtypes import BITS, bytes_of
from graphopt.graphs import proto_initializers

LEAST = 2**20
"""The bytes of a tensor that is worth it, in a file."""

LEAST_IN_MEMORY = 2**14
"""The bytes of one that is worth it, in an array: about what it takes to say where it is."""

_KEY = "graphopt.mapped"
_OURS = secrets.token_hex(16)  # no file knows it
_IN_MEMORY = "array:"
_BYTE = 8  # bits
_IS_LITTLE = sys.byteorder == "little"  # NumPy has numbers as the machine does
# Windows replaces no file that somebody looks at.
CAN_BE = _IS_LITTLE and sys.platform != "win32"

Array = npt.NDArray[np.generic]


class _Mapped(mmap.mmap):
    """A file whose pages are read when they are looked at.

    Attributes:
        path: Where it was when it was opened.
        number: Of the open file.
        content: What tells whether it has been written to.
    """

    path: Path
    number: int
    content: str

    @classmethod
    def of(cls, path: Path) -> "_Mapped":
        number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            made = cls(number, 0, access=mmap.ACCESS_READ)
            made.path, made.number, made.content = path, number, _content(os.fstat(number))
        except BaseException:
            os.close(number)
            raise
        return made

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    def check(self) -> None:
        """Refuse it where somebody has written to it."""
        if _content(os.fstat(self.number)) != self.content:
            raise _changed(self.path)


_open: WeakValueDictionary[tuple[Path, str], _Mapped] = WeakValueDictionary()
_arrays: WeakValueDictionary[int, Array] = WeakValueDictionary()
_numbers = count()


def can_be_left(tensor: TensorProto) -> bool:
    """Whether an external tensor is worth it, and lies in its file as NumPy has it."""
    return CAN_BE and _is_as_in_numpy(tensor, LEAST)


def can_be_left_in_memory(tensor: TensorProto) -> bool:
    """Whether the raw data of a tensor are worth it, and lie there as NumPy has them."""
    is_raw = tensor.HasField("raw_data") and tensor.data_location == TensorProto.DEFAULT
    return is_raw and _IS_LITTLE and _is_as_in_numpy(tensor, LEAST_IN_MEMORY)


def _is_as_in_numpy(tensor: TensorProto, least: int) -> bool:
    return (
        BITS.get(tensor.data_type, 1) % _BYTE == 0
        and all(size >= 0 for size in tensor.dims)
        and bytes_of(tensor) >= least
    )


def leave(tensor: TensorProto, file: Path, offset: int, length: int) -> None:
    """Leave the values of a tensor, which are these bytes, in their file."""
    _set(tensor, str(file), offset, length, mapping(file).content)


def leave_in_memory(tensor: TensorProto, data: bytes) -> Array:
    """Leave the values of a tensor, which are these bytes, where they are in memory.

    Returns:
        What somebody must hold: this array, or the one that `array_of` gives.
    """
    array = np.frombuffer(data, np.uint8)
    _set(tensor, "", 0, len(data), _held(array))
    return array


def arrays_in_memory(model: onnx.ModelProto) -> list[Array]:
    """What must be held as long as a model: the arrays in which values of it were left."""
    marks = (_mark(tensor) for tensor in proto_initializers(model) if is_left(tensor))
    numbers = (_number(mark) for mark in marks)
    return [_arrays[number] for number in numbers if number is not None]


def is_left(tensor: TensorProto) -> bool:
    """Whether the values of a tensor were left in their file, by this process."""
    return tensor.data_location == TensorProto.EXTERNAL and any(
        entry.key == _KEY and _is_ours(entry.value) for entry in tensor.metadata_props
    )


def array_of(tensor: TensorProto) -> Array:
    """The values of a tensor, which are read when they are looked at if they were left in a file.

    Raises:
        FileNotFoundError: The file is not there any more.
        ValueError: Somebody has written to it.
    """
    if not is_left(tensor):
        array: Array = numpy_helper.to_array(tensor)
        return array
    said = {entry.key: entry.value for entry in tensor.external_data}
    mark = _mark(tensor)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return _left(mark, said["location"], int(said["offset"]), tuple(tensor.dims), dtype)


def tensor_of(array: Array, name: str) -> TensorProto:
    """A tensor of an array; its values stay in the file that they are in, if they are in one."""
    found = _place(array) if array.nbytes >= LEAST else None
    if found is None:
        return numpy_helper.from_array(array, name)
    mapped, offset = found
    return _left_tensor(array, name, str(mapped.path), offset, mapped.content)


def tensor_at(array: Array, name: str) -> TensorProto:
    """A tensor of an array, whose values stay there; somebody must hold the array."""
    if (
        array.nbytes < LEAST_IN_MEMORY
        or not array.flags.c_contiguous
        or not _IS_LITTLE
        or _place(array) is not None
    ):
        return tensor_of(array, name)
    return _left_tensor(array, name, "", 0, _held(array))


def loaded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all values in it: a copy, if some were left in files."""
    if not any(map(is_left, proto_initializers(model))):
        return model
    own = onnx.ModelProto()
    own.CopyFrom(model)
    for tensor in proto_initializers(own):
        if is_left(tensor):
            array = array_of(tensor)
            tensor.raw_data = array.tobytes()
            give_back(array)
            tensor.ClearField("data_location")
            del tensor.external_data[:]
            _forget(tensor)
    return own


def notes_of(tensor: TensorProto) -> list[onnx.StringStringEntryProto]:
    """The metadata of a tensor, but for where its values were left."""
    return [entry for entry in tensor.metadata_props if entry.key != _KEY]


def _is_ours(mark: str) -> bool:
    return mark.startswith(f"{_OURS} ")


def _mark(tensor: TensorProto) -> str:
    """What a tensor that was left says of where its values are."""
    mark: str = next(entry.value for entry in tensor.metadata_props if entry.key == _KEY)
    return mark


def _number(mark: str) -> int | None:
    """That of the array in which values were left, if they were left in one."""
    content = mark.split(" ", 1)[1]
    return int(content.removeprefix(_IN_MEMORY)) if content.startswith(_IN_MEMORY) else None


def _held(array: Array) -> str:
    """What says that values are in an array, as long as somebody holds it."""
    number = next(_numbers)
    _arrays[number] = array
    return f"{_IN_MEMORY}{number}"


def _forget(tensor: TensorProto) -> None:
    """Let a tensor say no more that its values were left in a file."""
    for entry in [entry for entry in tensor.metadata_props if entry.key == _KEY]:
        tensor.metadata_props.remove(entry)


def use_left_tensors(model: ir.Model) -> None:
    """Let onnx-ir look at values that were left in files as `array_of` does."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and _is_ours(tensor.metadata_props.get(_KEY, "")):
            value.const_value = left = LeftTensor(
                tensor.location,
                tensor.offset,
                tensor.length,
                tensor.dtype,
                shape=tensor.shape,
                name=str(tensor.name),
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
            )
            if _number(left.metadata_props[_KEY]) is not None:
                left.numpy()  # and so holds the array


def is_in_file(array: Array) -> bool:
    """Whether a whole array is in a file."""
    return _place(array) is not None


def check_unchanged(arrays: Iterable[Array]) -> None:
    """Refuse arrays in a file that somebody has written to since it was opened.

    Raises:
        ValueError: There is one.
    """
    for array in arrays:
        if (mapped := _owner(array)) is not None:
            mapped.check()


def give_back(array: Array) -> None:
    """Give the memory of an array in a file back to the system, which reads it again if needed."""
    found = _place(array)
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if found is not None and advice is not None:
        mapped, offset = found
        begin = offset - offset % mmap.PAGESIZE
        mapped.madvise(advice, begin, offset + array.nbytes - begin)


def array_in(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array that is at a place in a file.

    Raises:
        ValueError: The file has not so many bytes there.
    """
    return np.frombuffer(mapping(path), dtype, math.prod(shape), offset).reshape(shape)


class LeftTensor(ir.ExternalTensor):
    """A tensor whose values were left in a file."""

    __slots__ = ()

    def _load(self) -> None:
        shape, dtype = tuple(map(int, self.shape.numpy())), self.dtype.numpy()
        array = _left(self.metadata_props[_KEY], str(self.path), self.offset or 0, shape, dtype)
        self._array = array

    def tobytes(self) -> bytes:
        """The values as a file has them."""
        return self.numpy().tobytes()


def _left_tensor(array: Array, name: str, path: str, offset: int, content: str) -> TensorProto:
    """A tensor of an array, whose values were left."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, dims=array.shape, data_type=kind)
    _set(tensor, path, offset, array.nbytes, content)
    return tensor


def _set(tensor: TensorProto, path: str, offset: int, length: int, content: str) -> None:
    """Let a tensor say where its values were left."""
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", path), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    _forget(tensor)
    tensor.metadata_props.add(key=_KEY, value=f"{_OURS} {content}")


def _left(
    mark: str, path: str, offset: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> Array:
    """What was left, by what the metadata says."""
    number = _number(mark)
    if number is not None:
        array = _arrays[number]
        is_itself = (array.shape, array.dtype) == (shape, dtype)
        return array if is_itself else array.view(dtype).reshape(shape)
    mapped = mapping(Path(path), mark.split(" ", 1)[1])
    return np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape)


def mapping(path: Path, content: str | None = None) -> _Mapped:
    """A file, of which pages are read when they are looked at; if given, with this content."""
    wanted = content or _content(path.stat())
    mapped = _open.get((path, wanted))
    if mapped is None:
        mapped = _Mapped.of(path)
        if mapped.content != wanted:
            raise _changed(path)
        _open[path, wanted] = mapped
    mapped.check()
    return mapped


def _owner(array: Array) -> _Mapped | None:
    """The file that an array is in."""
    holder: object = array
    while holder is not None and not isinstance(holder, _Mapped):
        holder = holder.obj if isinstance(holder, memoryview) else getattr(holder, "base", None)
    return holder


def _place(array: Array) -> tuple[_Mapped, int] | None:
    """The file that a whole array is in, and at which byte."""
    mapped = _owner(array)
    if mapped is None or not array.flags.c_contiguous:
        return None
    begin = np.frombuffer(mapped, np.uint8).ctypes.data
    return mapped, array.ctypes.data - begin


def _content(found: os.stat_result) -> str:
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _changed(path: Path) -> ValueError:
    return ValueError(
        f"'{path}' has been written to since the model was read, which needs its values; read the "
        "model again, and write new files beside old ones rather than into them"
    )
