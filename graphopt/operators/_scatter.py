"""Adding up elements that indices send to the same place.

ScatterND with reduction="add" would be the fastest way to add rows up, but on the CPU, ONNX Runtime
adds from several threads at once and loses rows where indices repeat. ScatterElements does not.
"""

import onnx_ir as ir

from graphopt.operators.backward import Backward

_KNOWN = (ir.DataType.FLOAT, ir.DataType.DOUBLE, None)


def scatter_add(
    b: Backward, onto: ir.Value, indices: ir.Value, updates: ir.Value, axis: int
) -> ir.Value:
    """ScatterElements with addition, for which the CPU knows no 16-bit floats."""
    op = b.op
    if onto.dtype in _KNOWN:
        return op.ScatterElements(onto, indices, updates, axis=axis, reduction="add")
    wide = [op.Cast(value, to=int(ir.DataType.FLOAT)) for value in (onto, updates)]
    total = op.ScatterElements(wide[0], indices, wide[1], axis=axis, reduction="add")
    return op.Cast(total, to=int(onto.dtype))
