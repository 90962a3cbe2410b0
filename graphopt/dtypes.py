"""Element types, by their number in ``onnx.TensorProto.DataType``."""

import math

import onnx
import onnx_ir as ir
from onnx import helper

BITS: dict[int, int] = {
    int(kind): kind.bitwidth
    for kind in ir.DataType
    if kind not in {ir.DataType.UNDEFINED, ir.DataType.STRING}
}
"""The size of an element in bits; text has none."""


def bytes_of(tensor: onnx.TensorProto) -> int:
    """The bytes that the values of a tensor of numbers are, by its shape."""
    return math.ceil(math.prod(map(int, tensor.dims)) * BITS[tensor.data_type] / 8)


def dtype_of(value: onnx.ValueInfoProto) -> str:
    """NumPy's name of the element type of an input or output of a graph, which is a tensor.

    Raises:
        ValueError: It is none, or one without an element type that is known.
    """
    container = value.type.WhichOneof("value")
    if container not in (None, "tensor_type"):
        raise ValueError(
            f"'{value.name}' is no tensor but a {container.removesuffix('_type')}; what is fed to "
            "a step and reported by it is tensors: make the model take one, or give one"
        )
    kind = value.type.tensor_type.elem_type
    if kind not in BITS and kind != onnx.TensorProto.STRING:
        raise ValueError(f"'{value.name}' is no tensor whose element type is known (got {kind})")
    return helper.tensor_dtype_to_np_dtype(kind).name
