"""What is known of a value before anything runs, and what a node says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

Dims = tuple[int | None, ...]
Number = int | float

MOST_ELEMENTS = 128  # of a value that is followed, as a shape or the factors of a Resize
LARGEST = 2**63 - 1  # of a dimension, and of an integer that is followed
_MOST_RANK = 64

_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32,
    TensorProto.UINT64: 64,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
}
_FLOATING: frozenset[int] = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.COMPLEX64,
        TensorProto.COMPLEX128,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.FLOAT8E4M3FNUZ,
        TensorProto.FLOAT8E5M2,
        TensorProto.FLOAT8E5M2FNUZ,
    }
)
_FOLLOWED: frozenset[int] = frozenset(
    {TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.BOOL}
)


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor.

    Attributes:
        dtype: ONNX's number of its element type; 0 where it is unknown.
        shape: Its dimensions, None for one that is unknown; None where even their number is.
        numbers: Its elements in order, where they are known and few.
    """

    dtype: int = 0
    shape: Dims | None = None
    numbers: tuple[Number, ...] | None = None

    @property
    def elements(self) -> int | None:
        """Their number, if it is known."""
        if self.shape is None:
            return None
        count = 1
        for size in self.shape:
            if size is None:
                return None
            count *= size
        return count

    @property
    def bytes(self) -> int | None:
        """Its size, if it is known."""
        elements, bits = self.elements, _BITS.get(self.dtype)
        return None if elements is None or bits is None else (elements * bits + 7) // 8

    @property
    def is_integer(self) -> bool:
        """Whether it certainly holds no floating-point numbers."""
        return self.dtype != 0 and self.dtype not in _FLOATING


UNKNOWN = TensorInfo()


def tensor(
    dtype: int, shape: Sequence[int | None] | None, numbers: Sequence[Number] | None = None
) -> TensorInfo:
    """What is known of a tensor; sizes and elements that cannot be are unknown."""
    if shape is not None and len(shape) > _MOST_RANK:
        shape = None
    dims = None if shape is None else tuple(_size(size) for size in shape)
    found = TensorInfo(dtype, dims)
    if numbers is None or dtype not in _FOLLOWED or found.elements != len(numbers):
        return found
    if len(numbers) > MOST_ELEMENTS or any(abs(number) > LARGEST + 1 for number in numbers):
        return found
    if dtype == TensorProto.FLOAT:
        return TensorInfo(dtype, dims, tuple(map(float, numbers)))
    return TensorInfo(dtype, dims, tuple(map(int, numbers)))


def _size(size: int | None) -> int | None:
    return None if size is None or not 0 <= size <= LARGEST else int(size)


def of_initializer(proto: TensorProto) -> TensorInfo:
    """An initializer or constant; external data is not read."""
    dims = tuple(proto.dims)
    found = tensor(proto.data_type, dims)
    if (
        found.elements is None
        or found.elements > MOST_ELEMENTS
        or proto.data_type not in _FOLLOWED
        or proto.external_data
        or proto.data_location == TensorProto.EXTERNAL
    ):
        return found
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError, RuntimeError):  # it has not the bytes of its shape
        return found
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return found
    return tensor(proto.data_type, dims, array.reshape(-1).tolist())


def of_type(kind: onnx.TypeProto, sizes: Mapping[str, int], name: str = "") -> TensorInfo:
    """What a declaration says, with these sizes for open dimensions.

    Args:
        kind: The declared type.
        sizes: Sizes by the name of the dimension.
        name: Of the input: its unnamed dimensions are called ``name[axis]``.
    """
    if not kind.HasField("tensor_type"):
        return UNKNOWN
    declared = kind.tensor_type
    if not declared.HasField("shape"):
        return TensorInfo(declared.elem_type)
    dims = [
        size if size is not None else sizes.get(dim.dim_param or f"{name}[{axis}]")
        for axis, dim in enumerate(declared.shape.dim)
        for size in [static_size(dim)]
    ]
    return tensor(declared.elem_type, dims)


def static_size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """The size of a dimension that is not open; some exporters write -1 for one that is."""
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None


def merged(found: TensorInfo, declared: TensorInfo | None) -> TensorInfo:
    """What follows from the inputs, and from the declaration what does not."""
    if declared is None or declared == UNKNOWN:
        return found
    dtype = found.dtype or declared.dtype
    if found.shape is None or declared.shape is None:
        shape = found.shape if declared.shape is None else declared.shape
    elif len(found.shape) != len(declared.shape):
        shape = found.shape
    else:
        pairs = zip(found.shape, declared.shape, strict=True)
        shape = tuple(other if size is None else size for size, other in pairs)
    return tensor(dtype, shape, found.numbers)


class Attributes:
    """The attributes of a node, of the kind that is asked for."""

    def __init__(self, node: onnx.NodeProto, outer: Mapping[str, AttributeProto]) -> None:
        """Those of a node.

        Args:
            node: The node.
            outer: Those of the function that it is in, which it may refer to.
        """
        self.all: dict[str, AttributeProto] = {}
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                self.all[attribute.name] = attribute
            elif attribute.ref_attr_name in outer:
                self.all[attribute.name] = outer[attribute.ref_attr_name]

    def __contains__(self, name: str) -> bool:
        return name in self.all

    def integer(self, name: str, default: int = 0) -> int:
        """An integer."""
        found = self._of(name, AttributeProto.INT)
        return default if found is None else int(found.i)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of integers."""
        found = self._of(name, AttributeProto.INTS)
        return None if found is None else tuple(found.ints)

    def text(self, name: str, default: str = "") -> str:
        """A text."""
        found = self._of(name, AttributeProto.STRING)
        return default if found is None else found.s.decode(errors="replace")

    def tensor(self, name: str) -> TensorProto | None:
        """A tensor."""
        found = self._of(name, AttributeProto.TENSOR)
        return None if found is None else found.t

    def graph(self, name: str) -> onnx.GraphProto | None:
        """A subgraph."""
        found = self._of(name, AttributeProto.GRAPH)
        return None if found is None else found.g

    def _of(self, name: str, kind: int) -> AttributeProto | None:
        found = self.all.get(name)
        return found if found is not None and found.type == kind else None


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


def operator(node: onnx.NodeProto) -> str:
    """The operator of a node; those that are not ONNX's own begin with their domain and "::"."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())
