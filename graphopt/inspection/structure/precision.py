"""In which floating-point types the forward pass computes."""

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.shapes.engine import Shapes
from graphopt.stage import Stage

_NAMES = {
    ir.DataType.DOUBLE: "float64",
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}
"""By the number of their digits."""


def precision_of(graph: ir.Graph, stages: Sequence[Stage], tensors: Shapes) -> tuple[str, ...]:
    """The types of what the nodes of the forward pass give, those of the most digits first."""
    found = {
        tensors.of(str(value.name)).dtype
        for node, stage in zip(graph, stages, strict=True)
        if stage == "forward"
        for value in node.outputs
    }
    return tuple(name for dtype, name in _NAMES.items() if dtype in found)
