"""Matrix products with a vector: the runtime's gradient of them is wrong or fails."""

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.rewriting import describe, replace


def rewrite_matmul(op: GraphBuilder, node: ir.Node) -> None:
    """Replace a product with a 1-D operand by one of matrices."""
    left, right = node.inputs
    assert left is not None
    assert right is not None
    if left.shape is None or right.shape is None:
        raise ValueError(
            f"{describe(node)}: the rank of an operand is unknown; "
            "declare the shapes of the model's inputs"
        )
    axes = []
    if len(left.shape) == 1:
        left = op.Unsqueeze(left, [0])
        axes.append(-2)
    if len(right.shape) == 1:
        right = op.Unsqueeze(right, [1])
        axes.append(-1)
    if axes:
        replace(op, node, op.Squeeze(op.MatMul(left, right), axes))
