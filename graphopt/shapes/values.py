"""What is known of a value before anything runs, and what a node says of itself."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

Dim = int | str | None
"""A size, the symbol of one that is open, or nothing."""
Dims = tuple[Dim, ...]
Number = int | float
Element = Number | str | None
"""An element that is known, the symbol of the size that it is, or nothing."""

MOST_ELEMENTS = 128  # of a value that is computed, such as a shape or the factors of a Resize
LARGEST = 2**63 - 1  # of a dimension, and of an integer that is followed
_MOST_STORED = 1024  # elements of an initializer that are read
_MOST_RANK = 64
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
    if dims is not None and len(dims) > _MOST_RANK:
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
    """An initializer or constant; external data is not read."""
    found = tensor(stored.dtype, stored.shape.numpy())
    elements = found.elements
    if elements is None or elements > _MOST_STORED or stored.dtype not in _FOLLOWED:
        return found
    if isinstance(stored, ir.ExternalTensor):
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


# Arithmetic with sizes


def known(size: Element) -> int | None:
    """A size that is a number."""
    return size if isinstance(size, int) else None


def product(*sizes: Dim) -> Dim:
    """The product of sizes; of a symbol and ones it is the symbol, of more it is unknown."""
    count, symbols = 1, []
    for size in sizes:
        if isinstance(size, int):
            count *= size
        else:
            symbols.append(size)
    if not symbols:
        return count
    return symbols[0] if len(symbols) == 1 and count == 1 else None


def plus(size: Dim, more: Dim) -> Dim:
    """The sum of two sizes; of a symbol and 0 it is the symbol."""
    if isinstance(size, int) and isinstance(more, int):
        return size + more
    return size if more == 0 else more if size == 0 else None


def whole(sizes: Iterable[Dim]) -> tuple[int, ...] | None:
    """Sizes all of which are numbers; None if one is not."""
    found = tuple(size for size in sizes)
    return found if all(isinstance(size, int) for size in found) else None  # type: ignore[return-value]


def needed(numbers: tuple[int, ...] | None) -> tuple[int, ...]:
    """Numbers that are known; IndexError otherwise, which makes the result unknown."""
    if numbers is None:
        raise IndexError("the elements are not known")
    return numbers


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        IndexError: There is no such axis.
    """
    if not -rank <= axis < rank:
        raise IndexError(f"axis: got {axis}, expected one of {rank}")
    return axis % rank


def broadcast(*shapes: Dims | None) -> Dims | None:
    """The shape of an elementwise operation.

    Raises:
        ValueError: They do not fit.
    """
    if None in shapes:
        return None
    given = [shape for shape in shapes if shape is not None]
    rank = max(map(len, given), default=0)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in given]
    return tuple(broadcast_size(sizes) for sizes in zip(*padded, strict=True))


def broadcast_size(sizes: Sequence[Dim]) -> Dim:
    """The size to which these are broadcast.

    Raises:
        ValueError: They do not fit.
    """
    larger = set(sizes) - {1}
    fixed = {size for size in larger if isinstance(size, int)}
    if len(fixed) > 1:
        raise ValueError(f"sizes {sorted(fixed)} do not fit each other")
    if fixed:
        return fixed.pop()
    return larger.pop() if len(larger) == 1 else None if larger else 1


# Nodes


class Attributes:
    """The attributes of a node, of the kind that is asked for."""

    def __init__(self, node: ir.Node, outer: Mapping[str, ir.Attr]) -> None:
        """Those of a node.

        Args:
            node: The node.
            outer: Those of the function that it is in, which it may refer to.
        """
        self._own = node.attributes
        self._outer = outer

    def get(self, name: str) -> ir.Attr | None:
        """An attribute, or that of the function to which it refers."""
        found = self._own.get(name)
        if found is not None and found.ref_attr_name:
            return self._outer.get(found.ref_attr_name)
        return found

    def all(self) -> dict[str, ir.Attr]:
        """All that have a value."""
        return {name: found for name in self._own if (found := self.get(name)) is not None}

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def integer(self, name: str, default: int = 0) -> int:
        """An integer."""
        found = self._value(name, ir.AttributeType.INT)
        return default if found is None else int(found)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers."""
        found = self._value(name, ir.AttributeType.INTS)
        return None if found is None else tuple(found)

    def count(self, name: str) -> int:
        """How many numbers a list has."""
        found = self._value(name, ir.AttributeType.FLOATS)
        return len(found) if found is not None else len(self.integers(name) or ())

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        found = self._value(name, ir.AttributeType.STRING)
        return default if found is None else str(found)

    def tensor(self, name: str) -> TensorInfo | None:
        """What is known of a tensor."""
        found = self._value(name, ir.AttributeType.TENSOR)
        return None if found is None else of_tensor(found)

    def graph(self, name: str) -> ir.Graph | None:
        """A subgraph."""
        found = self._value(name, ir.AttributeType.GRAPH)
        return found if isinstance(found, ir.Graph) else None

    def dtype(self, name: str, default: ir.DataType = NO_DTYPE) -> ir.DataType:
        """A dtype; ValueError if ONNX has no such."""
        return ir.DataType(self.integer(name, default))

    def _value(self, name: str, kind: ir.AttributeType) -> Any:
        found = self.get(name)
        return found.value if found is not None and found.type == kind else None


@dataclass(frozen=True)
class Node:
    """A node, with what is known of what it reads.

    Attributes:
        op_type: Its operator; those that are not ONNX's own begin with their domain and "::".
        inputs: What is known of each; None for one that is left out.
        outputs: How many it has.
        attributes: Its attributes.
    """

    op_type: str
    inputs: tuple[TensorInfo | None, ...]
    outputs: int
    attributes: Attributes

    def input(self, index: int) -> TensorInfo:
        """What is known of an input; nothing of one that is left out."""
        return (self.inputs[index] if index < len(self.inputs) else None) or UNKNOWN

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def shape(self, index: int = 0) -> Dims:
        """The shape of an input; IndexError where its rank is not known."""
        shape = self.input(index).shape
        if shape is None:
            raise IndexError("the rank is not known")
        return shape

    def sizes(self, index: int) -> tuple[Dim, ...] | None:
        """The elements of an input that is a list of sizes."""
        numbers = self.input(index).numbers
        if numbers is None:
            return None
        return tuple(n if n is None or isinstance(n, str) else int(n) for n in numbers)

    def dims(self, index: int) -> Dims | None:
        """The shape that an input is: of unknown sizes where only their number is known."""
        found = self.sizes(index)
        if found is not None or self.input(index).shape is None:
            return found
        (rank,) = self.shape(index)
        return (None,) * rank if isinstance(rank, int) and rank <= _MOST_RANK else None

    def integers(self, index: int) -> tuple[int, ...] | None:
        """The elements of an input that is a list of integers, all of which are known."""
        sizes = self.sizes(index)
        return None if sizes is None else whole(sizes)

    def axis(self, default: int, rank: int) -> int:
        """The attribute ``axis``, counted from the front."""
        return axis_of(self.attributes.integer("axis", default), rank)

    def axes(self) -> tuple[int, ...] | None:
        """The attribute or second input ``axes``; empty where it is given in neither way."""
        found = self.attributes.integers("axes")
        if found is not None:
            return found
        return self.integers(1) if self.has(1) else ()


Rule = Callable[[Node], Sequence[TensorInfo]]
"""What is known of the outputs of a node.

It may raise IndexError, TypeError, ValueError or ArithmeticError where nothing is known.
"""
