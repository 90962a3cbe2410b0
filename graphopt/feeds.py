"""What a step is fed, checked by name before anything runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from graphopt.dtypes import dtype_of
from graphopt.loss_scale import SMALLEST
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
        shape = tuple(map(_size, tensor.shape.dim))
    return Feed(value.name, shape, dtype_of(value))


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """A size as ONNX Runtime takes it: a negative number and "?" are any size."""
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param if dim.dim_param not in ("", "?") else None


class Feeds:
    """Checks what a step is given, once while it is the same arrays.

    Args:
        inputs: What a step must be given.
        defaults: Arrays for what may be left out.
    """

    def __init__(self, inputs: Sequence[Feed], defaults: Mapping[str, np.ndarray]) -> None:
        """Nothing has been given yet."""
        self._inputs, self._defaults = inputs, defaults
        self._given: dict[str, Any] | None = None
        self._ids: list[int] = []
        self._own: list[tuple[np.ndarray, np.ndarray]] = []  # the given arrays, and the results
        self._arrays: dict[str, np.ndarray] = {}

    def checked(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What a step is given as arrays, in the machine's byte order.

        The same arrays as the last time, whatever is in them now, give the same result objects.

        Raises:
            TypeError: ``feeds`` is not a dict, or a feed has the wrong dtype.
            ValueError: A feed is missing, unknown, of the wrong shape or empty.
        """
        if not isinstance(feeds, Mapping):
            raise TypeError(f"feeds: got {type(feeds).__name__}, expected a dict of arrays by name")
        if self._are_the_last(feeds):
            return self._arrays
        arrays = self._as_arrays({**self._defaults, **feeds})
        shared = all(
            is_value(given) or _is_memory_of(arrays[name], given) for name, given in feeds.items()
        )
        self._given, self._arrays = dict(feeds) if shared else None, arrays
        self._ids = list(map(id, feeds.values()))
        self._own = [(g, arrays[n]) for n, g in feeds.items() if isinstance(g, np.ndarray)]
        return arrays

    def _are_the_last(self, feeds: Mapping[str, Any]) -> bool:
        """Whether these arrays were given the last time, and are in the memory of the result."""
        return (
            self._given is not None
            and list(feeds) == list(self._given)
            and list(map(id, feeds.values())) == self._ids
            and all(given.shape == array.shape for given, array in self._own)
        )

    def _as_arrays(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        names = dict.fromkeys(feed.name for feed in self._inputs)
        problems = [f"'{name}' is missing" for name in names if name not in feeds]
        problems += [f"'{name}' is not a feed" for name in feeds if name not in names]
        if problems:
            raise ValueError(
                f"feeds: {', '.join(problems)}; expected {', '.join(repr(name) for name in names)}"
            )
        symbols: dict[str, tuple[int, str]] = {}
        arrays: dict[str, np.ndarray] = {}
        for feed in self._inputs:
            if is_value(value := feeds[feed.name]):
                arrays[feed.name] = _checked_value(feed, value, symbols)
                continue
            array = _as_array(feed, value)
            if array.dtype != np.dtype(feed.dtype):
                raise TypeError(
                    f"feed '{feed.name}': got dtype {array.dtype.name}, expected {feed.dtype}; "
                    f"convert it, for example with {_conversion(feed, array)}"
                )
            _check_shape(feed, array.shape, symbols)
            if array.dtype == object:
                _check_text(feed, array)
            arrays[feed.name] = np.ascontiguousarray(array).reshape(array.shape)
        return arrays


def _conversion(feed: Feed, array: np.ndarray) -> str:
    """How an array gets the dtype of a feed; classes, from one row of numbers for each."""
    rows = feed.dtype == "int64" and feed.shape is not None and array.ndim == len(feed.shape) + 1
    if feed.dtype == "object":
        return ".astype(str)"
    return ".argmax(1)" if rows and array.shape[1] > 1 else f".astype('{feed.dtype}')"


def shape_of(value: Any) -> tuple[int, ...]:
    """The shape of an array, or of a value of the runtime."""
    return tuple(value.shape() if is_value(value) else value.shape)


def sizes_of(inputs: Iterable[Feed], values: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of symbolic dimensions, by their names.

    Args:
        inputs: What has been fed.
        values: Arrays, or values of the runtime, that fit.
    """
    return {
        dim: size
        for feed in inputs
        for dim, size in zip(feed.shape or (), shape_of(values[feed.name]), strict=False)
        if isinstance(dim, str)
    }


def is_value(given: Any) -> bool:
    """Whether a feed is a value of the runtime, an ``onnxruntime.OrtValue``."""
    return hasattr(given, "is_tensor_sequence")


def check_fed(
    values: Mapping[str, Any],
    *,
    labels: Iterable[ClassLabels] = (),
    rates: Iterable[str] = (),
    scale: str | None = None,
) -> None:
    """Refuse labels, rates and a loss scale that are none; values of the runtime are not looked at.

    Args:
        values: What is fed.
        labels: The inputs that hold class indices; see `check_labels`.
        rates: Those that hold learning rates or weight decays; see `check_rate`.
        scale: The one that holds a loss scale; see `check_scale`.

    Raises:
        ValueError: One is none.
    """
    for one in labels:
        if isinstance(array := values[one.name], np.ndarray):
            check_labels(one, array)
    for rate in rates:
        if isinstance(array := values[rate], np.ndarray):
            check_rate(rate, array)
    if scale is not None and isinstance(values[scale], np.ndarray):
        check_scale(scale, values[scale])


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


def check_rate(name: str, array: np.ndarray) -> None:
    """Refuse a learning rate, or weight decay, that is fed and is NaN, infinite or below zero.

    Raises:
        ValueError: It is.
    """
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(f"feed '{name}': got {array}, expected a finite number >= 0")


def check_scale(name: str, array: np.ndarray) -> None:
    """Refuse a loss scale that is fed and is NaN, infinite or no normal number above zero.

    Raises:
        ValueError: It is.
    """
    if not (np.isfinite(array).all() and (array >= SMALLEST).all()):
        raise ValueError(f"feed '{name}': got {array}, expected a finite number >= {SMALLEST}")


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
        if feed.dtype == "object" and np.asarray(value).dtype.kind in "US":
            return np.asarray(value, object)
        return in_native_byte_order(np.asarray(value))
    except ValueError as error:
        raise ValueError(f"feed '{feed.name}': not an array: {error}") from None


def _check_text(feed: Feed, array: np.ndarray) -> None:
    for one in array.flat:
        if not isinstance(one, str | bytes):
            raise TypeError(
                f"feed '{feed.name}': got {one!r} among text, expected strings; write what is "
                "missing as a string too, as the model has it"
            )


def _checked_value(feed: Feed, value: Any, symbols: dict[str, tuple[int, str]]) -> Any:
    """A value of the runtime, which may be on a device."""
    expected = helper.np_dtype_to_tensor_dtype(np.dtype(feed.dtype))
    if value.element_type() != expected:
        raise TypeError(f"feed '{feed.name}': got {value.data_type()}, expected {feed.dtype}")
    _check_shape(feed, shape_of(value), symbols)
    return value


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
