"""What is known of a value before anything runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.mapped_values import LeftTensor
from graphopt.shapes.sizes import Dim, Dims, Element, known, product

MOST_ELEMENTS = 128  # of a value that is computed, such as a shape or the factors of a Resize
LARGEST = 2**63 - 1  # of a dimension, and of an integer that is followed
_MOST_STORED = 1024  # elements of an initializer that are read
MOST_RANK = 64
LARGEST_EXACT = 2**53  # of a whole number in double precision

UNNAMED = "unk__"  # how the names of sizes begin that nobody has named

BOOL, FLOAT, INT64 = ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.INT64
NO_DTYPE = ir.DataType.UNDEFINED
_COMPLEX = frozenset({ir.DataType.COMPLEX64, ir.DataType.COMPLEX128})
_FOLLOWED = frozenset({INT64, ir.DataType.INT32, FLOAT, BOOL})


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor.

    Attributes:
        dtype: Its dtype; UNDEFINED where it is unknown.
        shape: Its dimensions: a size, a symbol, or None for one that is unknown; None where even
            their number is.
        numbers: Its elements in order, where they are few and some are known.
        is_sequence: Whether it is a sequence of such tensors.
    """

    dtype: ir.DataType = NO_DTYPE
    shape: Dims | None = None
    numbers: tuple[Element, ...] | None = None
    is_sequence: bool = False

    @property
    def elements(self) -> int | None:
        """Their number, if it is known."""
        if self.shape is None or self.is_sequence:
            return None
        return known(product(*self.shape))

    @property
    def bytes(self) -> int | None:
        """Its size, if it is known."""
        elements = self.elements
        if elements is None or self.dtype in (NO_DTYPE, ir.DataType.STRING):
            return None
        return (elements * self.dtype.bitwidth + 7) // 8

    @property
    def is_integer(self) -> bool:
        """Whether it certainly holds no floating-point numbers."""
        return not (
            self.dtype == NO_DTYPE or self.dtype.is_floating_point() or self.dtype in _COMPLEX
        )


UNKNOWN = TensorInfo()


def tensor(
    dtype: ir.DataType, shape: Iterable[Dim] | None, numbers: Iterable[Element] | None = None
) -> TensorInfo:
    """What is known of a tensor; sizes and elements that cannot be are unknown."""
    dims = None if shape is None else tuple(map(_size, shape))
    if dims is not None and len(dims) > MOST_RANK:
        dims = None
    if numbers is None or dtype not in _FOLLOWED:
        return TensorInfo(dtype, dims)
    elements = tuple(numbers)
    count = None if dims is None else product(*dims)
    if len(elements) != count or len(elements) > MOST_ELEMENTS:
        return TensorInfo(dtype, dims)
    return TensorInfo(dtype, dims, _elements(dtype, elements))


def _size(size: Dim) -> Dim:
    if size is None or isinstance(size, str):
        return size
    return int(size) if 0 <= size <= LARGEST else None


def _elements(dtype: ir.DataType, elements: Sequence[Element]) -> tuple[Element, ...] | None:
    found = tuple(_element(dtype, element) for element in elements)
    return None if found and all(element is None for element in found) else found


def _element(dtype: ir.DataType, element: Element) -> Element:
    """An element as a dtype holds it; what overflows is unknown."""
    if element is None or isinstance(element, str):
        return element if dtype in (INT64, ir.DataType.INT32) else None
    if dtype == BOOL:
        return int(element != 0)
    if dtype == FLOAT:
        return float(np.float32(element)) if abs(element) <= LARGEST_EXACT else None
    largest = LARGEST if dtype == INT64 else 2**31 - 1
    return int(element) if -largest - 1 <= element <= largest else None


def of_tensor(stored: ir.TensorProtocol) -> TensorInfo:
    """An initializer or constant; of external data, only what was left by us is looked at."""
    found = tensor(stored.dtype, stored.shape.numpy())
    elements = found.elements
    if elements is None or elements > _MOST_STORED or stored.dtype not in _FOLLOWED:
        return found
    if isinstance(stored, ir.ExternalTensor) and not isinstance(stored, LeftTensor):
        return found
    try:
        array = stored.numpy()
    except Exception:  # noqa: BLE001 - it has not the bytes of its shape, or what else is wrong
        return found
    if array.size != elements or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        return found
    return TensorInfo(stored.dtype, found.shape, tuple(array.reshape(-1).tolist()))


def declared(value: ir.Value, sizes: Mapping[str, int] | None = None) -> TensorInfo:
    """What the declaration of a value says.

    Args:
        value: The value.
        sizes: Sizes by symbol; an open dimension that is not in it is unknown, and one without a
            symbol is called as `symbol_of` says. Without them, symbols stay.
    """
    kind, shape = value.type, value.shape
    is_sequence = isinstance(kind, ir.SequenceType)
    if isinstance(kind, ir.SequenceType):
        kind = kind.elem_type
    if not (kind is None or isinstance(kind, ir.TensorType)):
        return UNKNOWN
    dtype = NO_DTYPE if kind is None else kind.dtype
    if shape is None:
        return TensorInfo(dtype, is_sequence=is_sequence)
    if sizes is None:
        dims: list[Dim] = [size if isinstance(size, int) else size.value for size in shape]
    else:
        dims = [
            size if isinstance(size, int) and size >= 0 else sizes.get(symbol_of(value, axis))
            for axis, size in enumerate(shape)
        ]
    return TensorInfo(dtype, tensor(dtype, dims).shape, is_sequence=is_sequence)


def is_fixed(size: int | ir.SymbolicDim) -> bool:
    """Whether a dimension is not open; some exporters write -1 for one that is."""
    return isinstance(size, int) and size >= 0


def symbol_of(value: ir.Value, axis: int) -> str:
    """The name of an open dimension; one without is called after its value, as ``x[0]``."""
    size = None if value.shape is None else value.shape[axis]
    name = size.value if isinstance(size, ir.SymbolicDim) else None
    return name or f"{value.name}[{axis}]"


def merged(found: TensorInfo, other: TensorInfo | None) -> TensorInfo:
    """What follows from the inputs, and from a declaration what does not."""
    if other is None or other == UNKNOWN:
        return found
    dtype = other.dtype if found.dtype == NO_DTYPE else found.dtype
    if found.shape is None or other.shape is None:
        shape = found.shape if other.shape is None else other.shape
    elif len(found.shape) != len(other.shape):
        shape = found.shape
    else:
        pairs = zip(found.shape, other.shape, strict=True)
        shape = tuple(size if said is None or _is_named(size) else said for size, said in pairs)
    return TensorInfo(dtype, shape, found.numbers, found.is_sequence or other.is_sequence)


def _is_named(size: Dim) -> bool:
    return size is not None and not str(size).startswith(UNNAMED)


def either(infos: Sequence[TensorInfo]) -> TensorInfo:
    """What holds for each of these."""
    first, *others = infos
    dtype, shape = first.dtype, first.shape
    for other in others:
        dtype = dtype if dtype == other.dtype else NO_DTYPE
        if shape is None or other.shape is None or len(shape) != len(other.shape):
            shape = None
        else:
            pairs = zip(shape, other.shape, strict=True)
            shape = tuple(a if a == b else None for a, b in pairs)
    return TensorInfo(dtype, shape, is_sequence=any(info.is_sequence for info in infos))
