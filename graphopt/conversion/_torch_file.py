"""Files of ``torch.save``, read and written without PyTorch.

Such a file is a zip archive with a pickle, which refers to the bytes of tensors in other entries.
The pickle is read as data and never run.
"""

import math
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from graphopt._files import PathLike, existing_file, write_atomically
from graphopt.carried import Array
from graphopt.conversion._pickled import Name, Unknown, UnpickleError, mapping, read_pickle
from graphopt.conversion._pickling import Tensor, pickled
from graphopt.limits import check_memory

_DTYPES = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
_STORAGES = {f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()}
_NAMES = {dtype: name.removeprefix("torch.") for name, dtype in _STORAGES.items()}
_DEEPEST = 8  # dicts and lists in each other, of which a state has four
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}


@dataclass(frozen=True)
class _Storage:
    """The bytes that tensors are parts of."""

    dtype: np.dtype[Any]
    key: str
    count: int


@dataclass(frozen=True)
class _Part:
    """A tensor, whose values are read when they are asked for."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def is_torch_file(path: PathLike) -> bool:
    """Whether a file may be one of ``torch.save``."""
    return zipfile.is_zipfile(path)


def read_torch(path: PathLike) -> Any:
    """What is in a file of ``torch.save``, without PyTorch, and without running anything in it.

    Dicts, lists, numbers and text are what they are, tensors are NumPy arrays; any other object
    is a placeholder that has its name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such file, or damaged.
    """
    path = existing_file(path)
    with _refusing(path), zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} entries data.pkl, expected one")
        folder = pickles[0].removesuffix("data.pkl")
        order = "little"
        if f"{folder}byteorder" in archive.namelist():
            order = _entry(archive, f"{folder}byteorder").decode("ascii", "replace").strip()
        found = read_pickle(_entry(archive, pickles[0]), _made, _storage)
        return _Values(archive, folder, swapped=order != sys.byteorder).of(found)


def write(path: PathLike, value: Mapping[str, Any]) -> None:
    """Write dicts, lists, numbers, text and arrays, so that ``torch.load`` reads them, atomically.

    Arrays become tensors on the CPU; it takes ``weights_only=True``.

    Raises:
        FileNotFoundError: The folder does not exist.
    """

    def fill(part: Path) -> None:
        tensors: list[Tensor] = []
        with zipfile.ZipFile(part, "w") as archive:
            archive.writestr("archive/data.pkl", pickled(value, _NAMES, tensors))
            archive.writestr("archive/byteorder", sys.byteorder)
            for index, array in enumerate(tensors):
                with archive.open(f"archive/data/{index}", "w", force_zip64=True) as file:
                    file.write(array.reshape(-1).view(np.uint8).data)
            archive.writestr("archive/version", "3\n")

    write_atomically(path, fill)


def _made(name: str, arguments: tuple[Any, ...]) -> Any:
    if name == "collections.OrderedDict":
        return mapping((key, value) for key, value in (arguments or ([],))[0])
    if name == _TENSOR:
        storage, offset, shape, strides = arguments[:4]
        if not isinstance(storage, _Storage):
            raise TypeError("a tensor has no storage")
        return _Part(storage, _count(offset), _counts(shape), _counts(strides))
    if name in _PARAMETERS:
        return arguments[0]
    return Unknown(name)


def _storage(identifier: Any) -> _Storage:
    kind, storage, key, _, count = identifier
    if kind != "storage" or not isinstance(storage, Name) or not isinstance(key, str):
        raise TypeError("it refers to something else than a storage")
    if storage.text not in _STORAGES:
        raise ValueError(f"it has tensors of {storage.text}, which NumPy does not know")
    return _Storage(_STORAGES[storage.text], key, _count(count))


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"got a {type(value).__name__}, expected a number of elements")
    return value


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        raise TypeError(f"got a {type(values).__name__}, expected sizes")
    return tuple(map(_count, values))


class _Values:
    """Makes arrays of the tensors of an archive."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, *, swapped: bool) -> None:
        self._archive, self._folder, self._swapped = archive, folder, swapped
        self._storages: dict[_Storage, Array] = {}
        self._made: dict[int, Any] = {}  # by the identity of what it is made of

    def of(self, value: Any, depth: int = 0) -> Any:
        """A value with arrays in it; what is deeper than any state is left out."""
        if not isinstance(value, _Part | dict | list | tuple):
            return value
        if id(value) not in self._made:
            self._made[id(value)] = Unknown("nested")  # what it is inside itself
            if isinstance(value, _Part):
                self._made[id(value)] = self._array(value)
            elif depth <= _DEEPEST and isinstance(value, dict):
                found = {key: self.of(inner, depth + 1) for key, inner in value.items()}
                self._made[id(value)] = found
            elif depth <= _DEEPEST:
                self._made[id(value)] = type(value)(self.of(inner, depth + 1) for inner in value)
        return self._made[id(value)]

    def _array(self, part: _Part) -> Array:
        flat = self._flat(part.storage)
        if len(part.shape) != len(part.strides):
            raise ValueError("a tensor has other numbers of sizes and strides")
        check_memory(math.prod(part.shape) * flat.itemsize, "a tensor")
        last = part.offset + sum(
            (size - 1) * stride for size, stride in zip(part.shape, part.strides, strict=True)
        )
        if 0 in part.shape:
            return np.zeros(part.shape, flat.dtype)
        if last >= flat.size:
            raise ValueError("a tensor is larger than what it is stored in")
        strides = [stride * flat.itemsize for stride in part.strides]
        view = np.lib.stride_tricks.as_strided(flat[part.offset :], part.shape, strides)
        return np.array(view)

    def _flat(self, storage: _Storage) -> Array:
        if storage not in self._storages:
            data = _entry(self._archive, f"{self._folder}data/{storage.key}")
            if len(data) < storage.count * storage.dtype.itemsize:
                raise ValueError(f"storage '{storage.key}' has too few bytes")
            flat = np.frombuffer(data, storage.dtype, storage.count)
            self._storages[storage] = flat.byteswap() if self._swapped else flat
        return self._storages[storage]


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"its entry '{name}' is compressed, which torch.save never does")
    return archive.read(info)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Let all that is wrong with a file be one kind of error, that names it."""
    try:
        yield
    except UnpickleError as error:
        raise ValueError(f"'{path}' cannot be read as data: {error}") from None
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"'{path}' is not a file of torch.save, or is damaged: {error}; a file of PyTorch 1.5 "
            "or older must be loaded and saved again there"
        ) from None
    except (
        EOFError,
        KeyError,
        NotImplementedError,
        OSError,
        RuntimeError,
        TypeError,
        UnicodeError,
        ValueError,
    ) as error:
        raise ValueError(f"'{path}' is damaged: {error}") from None
