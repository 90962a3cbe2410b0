"""Whether tensors and types of an untrusted model are what they say."""

import math
from collections.abc import Iterator, Sequence

import onnx
from onnx import TensorProto, helper

from graphopt.dtypes import BITS
from graphopt.soundness.names import check_name

MOST_ELEMENTS = 2**40
"""Of one tensor; what is larger is no network."""

_HIGHEST_RANK = 64  # NumPy's
_DEEPEST_TYPE = 16  # of sequences in sequences

_KNOWN = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}

_FIELD_OF = {kind: helper.tensor_dtype_to_field(kind) for kind in sorted(_KNOWN)}
_FIELDS = tuple(dict.fromkeys(_FIELD_OF.values()))


def check_tensor(tensor: TensorProto, where: str) -> None:
    """Refuse a tensor whose dimensions, element type or bytes cannot be.

    One without any bytes is as it should be: they were taken out, or are in another file.

    Args:
        tensor: The tensor.
        where: What it is, for the error.

    Raises:
        ValueError: It is damaged.
    """
    dims, kind = tensor.dims, tensor.data_type
    check_dimensions(dims, where)
    if kind not in _KNOWN:
        raise ValueError(f"{where} has the element type {kind}, which onnx does not know")
    if tensor.HasField("segment"):
        raise ValueError(f"{where} is a segment of a tensor, expected a whole one")
    field = _FIELD_OF[kind]
    filled = [name for name in _FIELDS if len(getattr(tensor, name))]
    raw = len(tensor.raw_data)
    if filled not in ([], [field]) or (raw and filled) or (raw and kind == TensorProto.STRING):
        given = ", ".join(filled + ["raw_data"] * bool(raw))
        raise ValueError(f"{where} has values in {given}, expected them in {field} or raw_data")
    count = math.prod(dims)
    if raw and raw != (expected := math.ceil(count * BITS[kind] / 8)):
        raise ValueError(
            f"{where} of shape {list(dims)} has {raw} bytes, expected {expected} "
            f"({TensorProto.DataType.Name(kind)})"
        )
    if filled and len(getattr(tensor, field)) != (expected := _entries(kind, count)):
        raise ValueError(
            f"{where} of shape {list(dims)} has {len(getattr(tensor, field))} values, "
            f"expected {expected}"
        )


def check_dimensions(dims: Sequence[int], where: str) -> None:
    """Refuse dimensions below zero, and more of them or more elements than can be.

    Raises:
        ValueError: There is such a dimension.
    """
    if len(dims) > _HIGHEST_RANK:
        raise ValueError(f"{where} has {len(dims)} dimensions, expected at most {_HIGHEST_RANK}")
    if any(size < 0 for size in dims):
        raise ValueError(f"{where} has the shape {list(dims)}, expected no dimension below 0")
    # Next to a 0, the others still count: NumPy multiplies them.
    if math.prod(max(size, 1) for size in dims) >= MOST_ELEMENTS:
        raise ValueError(
            f"{where} has the shape {list(dims)}, expected less than {MOST_ELEMENTS} elements"
        )


def check_type(kind: onnx.TypeProto, where: str) -> None:
    """Refuse a declared type that cannot be.

    Raises:
        ValueError: It is damaged.
    """
    for level in range(_DEEPEST_TYPE):
        match kind.WhichOneof("value"):
            case "tensor_type" | "sparse_tensor_type" as name:
                tensor = getattr(kind, name)
                _check_tensor_type(tensor, where)
                if level and not tensor.elem_type:
                    raise ValueError(f"{where} is a sequence of tensors without an element type")
                return
            case "sequence_type" | "optional_type" as name:
                kind = getattr(kind, name).elem_type
            case "map_type":
                if kind.map_type.key_type not in _KNOWN:
                    raise ValueError(f"{where} is a map with keys of an unknown type")
                kind = kind.map_type.value_type
            case _ if level:
                raise ValueError(f"{where} is a sequence, a map or an optional of nothing")
            case _:
                return
    raise ValueError(f"the type of {where} is nested deeper than {_DEEPEST_TYPE} levels")


def open_dimensions(kind: onnx.TypeProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    """The dimensions -1 of a type that was checked, as some exporters write open ones."""
    while True:
        match kind.WhichOneof("value"):
            case "tensor_type" | "sparse_tensor_type" as name:
                yield from (d for d in getattr(kind, name).shape.dim if d.dim_value == -1)
                return
            case "sequence_type" | "optional_type" as name:
                kind = getattr(kind, name).elem_type
            case "map_type":
                kind = kind.map_type.value_type
            case _:
                return


def _check_tensor_type(
    tensor: onnx.TypeProto.Tensor | onnx.TypeProto.SparseTensor, where: str
) -> None:
    if tensor.elem_type and tensor.elem_type not in _KNOWN:
        raise ValueError(
            f"{where} has the element type {tensor.elem_type}, which onnx does not know"
        )
    sizes = [size.dim_value for size in tensor.shape.dim if size.HasField("dim_value")]
    check_dimensions([size for size in sizes if size != -1], where)
    if len(tensor.shape.dim) > _HIGHEST_RANK:
        raise ValueError(
            f"{where} has {len(tensor.shape.dim)} dimensions, expected at most {_HIGHEST_RANK}"
        )
    for size in tensor.shape.dim:
        check_name(size.dim_param, f"a dimension of {where}")


def _entries(kind: int, count: int) -> int:
    """How many values a typed field has."""
    if kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * count
    bits = BITS.get(kind, 8)
    return math.ceil(count * bits / 8) if bits in (2, 4) else count
