"""What a step is fed, checked by name before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from graphopt.operators.labels import ClassLabels


@dataclass(frozen=True)
class Feed:
    """What a step must be given.

    Attributes:
        name: The name of the graph's input.
        shape: Its dimensions; a string is a symbolic one, which may differ from step to step but
            is the same for every feed that names it; None may be anything. None in place of the
            dimensions: any shape.
        dtype: NumPy's name of its element type.
    """

    name: str
    shape: tuple[int | str | None, ...] | None
    dtype: str


def feed_of(value: onnx.ValueInfoProto) -> Feed:
    """What must be fed to an input of a graph."""
    tensor = value.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in tensor.shape.dim
        )
    return Feed(value.name, shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)


def checked_feeds(
    inputs: Sequence[Feed], feeds: Mapping[str, Any], defaults: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What a step is given as arrays, in the machine's byte order.

    Args:
        inputs: What it must be given.
        feeds: What it is given.
        defaults: Arrays for what may be left out.

    Raises:
        TypeError: ``feeds`` is not a dict, or a feed has the wrong dtype.
        ValueError: A feed is missing, unknown, of the wrong shape or empty.
    """
    if not isinstance(feeds, Mapping):
        raise TypeError(f"feeds: got {type(feeds).__name__}, expected a dict of arrays by name")
    names = dict.fromkeys(feed.name for feed in inputs)
    feeds = {**defaults, **feeds}
    problems = [f"'{name}' is missing" for name in names if name not in feeds]
    problems += [f"'{name}' is not a feed" for name in feeds if name not in names]
    if problems:
        raise ValueError(
            f"feeds: {', '.join(problems)}; expected {', '.join(repr(name) for name in names)}"
        )
    symbols: dict[str, tuple[int, str]] = {}
    arrays: dict[str, np.ndarray] = {}
    for feed in inputs:
        array = _as_array(feed, feeds[feed.name])
        if array.dtype != np.dtype(feed.dtype):
            raise TypeError(
                f"feed '{feed.name}': got dtype {array.dtype.name}, expected {feed.dtype}; "
                f"convert it, for example with .astype('{feed.dtype}')"
            )
        _check_shape(feed, array.shape, symbols)
        arrays[feed.name] = np.ascontiguousarray(array).reshape(array.shape)
    return arrays


@dataclass(frozen=True)
class _Checked:
    """Arrays that were given, and those that were made of them, in the same memory."""

    given: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]

    def is_of(self, feeds: Any) -> bool:
        """Whether these are the arrays that were given."""
        return (
            isinstance(feeds, Mapping)
            and len(feeds) == len(self.given)
            and all(
                feeds.get(name) is given and given.shape == self.arrays[name].shape
                for name, given in self.given.items()
            )
        )


class Feeds:
    """Checks what a step is given, once while it is the same arrays.

    Args:
        inputs: What a step must be given.
        defaults: Arrays for what may be left out.
    """

    def __init__(self, inputs: Sequence[Feed], defaults: Mapping[str, np.ndarray]) -> None:
        """Nothing has been given yet."""
        self._inputs, self._defaults = inputs, defaults
        self._last: _Checked | None = None

    def checked(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What a step is given as arrays; see `checked_feeds`.

        The same arrays as the last time, whatever is in them now, give the same result objects.
        """
        last = self._last
        if last is not None and last.is_of(feeds):
            return last.arrays
        arrays = checked_feeds(self._inputs, feeds, self._defaults)
        shared = all(_is_memory_of(arrays[name], given) for name, given in feeds.items())
        self._last = _Checked(dict(feeds), arrays) if shared else None
        return arrays


def check_labels(labels: ClassLabels, array: np.ndarray) -> None:
    """Refuse a label that is no class.

    Raises:
        ValueError: There is one.
    """
    wrong = (array < 0) | (array >= labels.classes)
    if labels.ignored is not None:
        wrong &= array != labels.ignored
    if wrong.any():
        raise ValueError(
            f"feed '{labels.name}': got label {array[wrong].flat[0]}, "
            f"expected classes 0 to {labels.classes - 1}"
        )


def in_native_byte_order(array: np.ndarray) -> np.ndarray:
    """In the byte order of the machine, which is what the runtime takes an array to be in."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _is_memory_of(array: np.ndarray, given: Any) -> bool:
    return isinstance(given, np.ndarray) and array.ctypes.data == given.ctypes.data


def _as_array(feed: Feed, value: Any) -> np.ndarray:
    """The feed as an array; a Python number for a scalar takes its dtype."""
    if feed.shape == () and isinstance(value, int | float):
        return np.asarray(value, feed.dtype)
    if value is None or isinstance(value, onnx.TensorProto):
        raise TypeError(f"feed '{feed.name}': got {type(value).__name__}, expected an array")
    try:
        return in_native_byte_order(np.asarray(value))
    except ValueError as error:
        raise ValueError(f"feed '{feed.name}': not an array: {error}") from None


def _check_shape(feed: Feed, shape: tuple[int, ...], symbols: dict[str, tuple[int, str]]) -> None:
    if feed.shape is None or (shape == feed.shape and 0 not in shape):
        return
    wanted = [dim if dim is not None else "any" for dim in feed.shape]
    fits = len(shape) == len(wanted) and all(
        got == dim for got, dim in zip(shape, wanted, strict=True) if isinstance(dim, int)
    )
    if not fits:
        raise ValueError(f"feed '{feed.name}': got shape {list(shape)}, expected {wanted}")
    if 0 in shape:
        raise ValueError(
            f"feed '{feed.name}': got shape {list(shape)}, which has no elements; "
            "there is nothing to learn from an empty batch"
        )
    for got, dim in zip(shape, feed.shape, strict=True):
        if isinstance(dim, str):
            other, where = symbols.setdefault(dim, (got, feed.name))
            if other != got:
                raise ValueError(
                    f"feed '{feed.name}': got shape {list(shape)}, expected {wanted} "
                    f"with {dim}={other} as in feed '{where}'"
                )
