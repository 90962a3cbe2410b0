"""Pickles of plain data and tensors, as ``torch.load`` reads them, written without PyTorch."""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from graphopt.carried import Array

Tensor = Array

_PROTOCOL = b"\x80\x02"
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
_NO_HOOKS = b"ccollections\nOrderedDict\n)R"


def pickled(value: Any, storages: Mapping[np.dtype[Any], str], tensors: list[Tensor]) -> bytes:
    """A pickle of a value.

    Args:
        value: Dicts, lists, tuples, numbers, text, None and arrays.
        storages: What PyTorch calls the storage of each dtype.
        tensors: Gets the arrays, in the order in which the pickle refers to them by number.

    Raises:
        TypeError: A value is something else.
    """
    return _PROTOCOL + _encoded(value, storages, tensors) + b"."


def _encoded(value: Any, storages: Mapping[np.dtype[Any], str], tensors: list[Tensor]) -> bytes:
    def inner(part: Any) -> bytes:
        return _encoded(part, storages, tensors)

    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            size = max(1, (value.bit_length() + 8) // 8)
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode()
            return b"X" + len(text).to_bytes(4, "little") + text
        case tuple():
            return b"(" + b"".join(map(inner, value)) + b"t"
        case list():
            return b"](" + b"".join(map(inner, value)) + b"e"
        case dict():
            return b"}(" + b"".join(inner(k) + inner(v) for k, v in value.items()) + b"u"
        case np.ndarray():
            return _tensor(value, storages, tensors)
    raise TypeError(f"got {type(value).__name__}, expected plain data")


def _tensor(array: Array, storages: Mapping[np.dtype[Any], str], tensors: list[Tensor]) -> bytes:
    """A call that makes the tensor of a storage, which the archive has under its number."""
    if array.dtype not in storages:
        raise TypeError(f"got an array of {array.dtype.name}, which PyTorch does not know")
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    strides = tuple(step // array.itemsize for step in contiguous.strides)
    key = str(len(tensors))
    tensors.append(contiguous)

    def plain(value: Any) -> bytes:
        return _encoded(value, storages, tensors)

    kind = f"ctorch\n{storages[array.dtype]}\n".encode()
    identifier = plain("storage") + kind + plain(key) + plain("cpu") + plain(array.size)
    storage = b"(" + identifier + b"tQ"
    rest = plain(0) + plain(array.shape) + plain(strides) + plain(False)
    return _REBUILD + b"(" + storage + rest + _NO_HOOKS + b"tR"
