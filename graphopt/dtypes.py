"""Element types, by their number in ``onnx.TensorProto.DataType``."""

import onnx_ir as ir

BITS: dict[int, int] = {
    int(kind): kind.bitwidth
    for kind in ir.DataType
    if kind not in {ir.DataType.UNDEFINED, ir.DataType.STRING}
}
"""The size of an element in bits; text has none."""
