"""Where a gradient may be infinite, though the loss is not.

The slope of a root is infinite at 0, and 0 times infinity is not 0: there, a rule that lets part of
a gradient through has to choose it. A product with 0 and 1, which is faster, does elsewhere.
"""

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

_STEEP = {
    *("Acos", "Acosh", "Asin", "Atanh", "Log", "Reciprocal", "ReduceLogSum", "Sqrt"),
    *("Div", "Pow"),
}
_MOVES_ONLY = {
    *("Cast", "CastLike", "Expand", "Flatten", "Identity"),
    *("Reshape", "Squeeze", "Transpose", "Unsqueeze"),
}
# Each element of an operand gets a gradient from what the gradient of the result has there.
_SPREADS = {
    *("Add", "Conv", "ConvTranspose", "Div", "Einsum", "Gemm", "MatMul", "Mul", "Sub", "Sum"),
    *("BatchNormalization", "InstanceNormalization", "LayerNormalization"),
}


def steep_values(
    nodes: Sequence[ir.Node], values: Collection[ir.Value], parameters: Iterable[ir.Value]
) -> set[ir.Value]:
    """The values whose gradient may be infinite, or not a number.

    Behind a node where a parameter gets a gradient from each element, as a weight or a bias does,
    it does not matter: an infinite one would have destroyed that parameter.

    Args:
        nodes: Those between the parameters and the loss, in the order of the graph.
        values: Theirs that depend on a parameter.
        parameters: The trained ones.
    """
    moved = set(parameters)
    for node in nodes:
        if node.op_type in _MOVES_ONLY and node.inputs[0] in moved:
            moved.add(node.outputs[0])
    steep: set[ir.Value] = set()
    for node in reversed(nodes):
        operands = [value for value in node.inputs if value in values and value is not None]
        is_destroyed = node.op_type in _SPREADS and not moved.isdisjoint(operands)
        if not steep.isdisjoint(node.outputs) and not is_destroyed:
            steep.update(operands)
        if node.op_type == "Div":
            operands = [value for value in operands if value is node.inputs[1]]
        if node.op_type in _STEEP and not (node.op_type == "Pow" and _is_flat_power(node, values)):
            steep.update(operands)
    return steep


def _is_flat_power(node: ir.Node, values: Collection[ir.Value]) -> bool:
    """Whether the exponent is constant, and the slope is finite."""
    exponent = node.inputs[1]
    if exponent is None or exponent in values:
        return False
    tensor = ir.convenience.get_const_tensor(exponent)
    return tensor is not None and all(e == 0 or e >= 1 for e in tensor.numpy().reshape(-1).tolist())
