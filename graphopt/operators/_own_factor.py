"""Products of a value with a factor that is computed from it, whose gradient is one function.

They are x sigmoid(x), which is called Swish or SiLU, and x / sqrt(mean(x²) + ε), which is RMS
normalization.
"""

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.local_functions import call_body
from graphopt.operators.backward import Backward
from graphopt.operators.record import name_of
from graphopt.operators.rewriting import mean_over


def gradient_of_both(b: Backward, x: ir.Value, factor: ir.Value) -> ir.Value | None:
    """The gradient of x, also through the factor; None where there is no kernel for it."""
    if not b.has_kernels(b.dy, x, factor):
        return None
    node = factor.producer()
    if node is not None and name_of(node) == "Sigmoid" and node.inputs[0] is x:
        return _swish(b, x)
    if _is_inverse_root_mean_square(b, x, factor):
        return _rms_norm(b, x, factor)
    return None


def _swish(b: Backward, x: ir.Value) -> ir.Value:
    """dx = dy (s + x s (1 - s)), where s is the sigmoid of x."""

    def gradient(op: GraphBuilder, dy: ir.Value, x: ir.Value) -> ir.Value:
        s = op.Sigmoid(x)
        return op.Mul(dy, op.Mul(s, op.Add(op.Mul(x, op.Sub(1.0, s)), 1.0)))

    return call_body(b.op, "SwishGradient", [b.dy, x], gradient, None)[0]


def _rms_norm(b: Backward, x: ir.Value, factor: ir.Value) -> ir.Value:
    """dx = r dy - x r³ mean(dy x), where r is the factor and the mean is over the last axis."""
    axis = b.rank(x) - 1

    def gradient(op: GraphBuilder, dy: ir.Value, x: ir.Value, factor: ir.Value) -> ir.Value:
        along = mean_over(op, op.Mul(dy, x), [axis], keepdims=True)
        along = op.Mul(along, op.Mul(factor, factor))
        return op.Mul(factor, op.Sub(dy, op.Mul(x, along)))

    return call_body(b.op, "RmsNormGradient", [b.dy, x, factor], gradient, axis)[0]


def _is_inverse_root_mean_square(b: Backward, x: ir.Value, factor: ir.Value) -> bool:
    """Whether the factor is 1 / sqrt(mean(x²) + ε) over the last axis, with ε above 0."""
    root = _operand_of("Reciprocal", factor)
    total = None if root is None else _operand_of("Sqrt", root)
    node = None if total is None else total.producer()
    if node is None or name_of(node) != "Add" or not x.shape:
        return False
    for mean, epsilon in (node.inputs, reversed(node.inputs)):
        number = b.constant(epsilon)
        if mean is not None and number is not None and number.size == 1 and number.item() > 0:
            return _is_mean_square(b, x, mean) and number.ndim <= 1
    return False


def _operand_of(op_type: str, value: ir.Value) -> ir.Value | None:
    node = value.producer()
    return node.inputs[0] if node is not None and name_of(node) == op_type else None


def _is_mean_square(b: Backward, x: ir.Value, mean: ir.Value) -> bool:
    square = _operand_of("ReduceMean", mean)
    node = None if square is None else square.producer()
    if node is None or mean.shape is None or None in b.shape(x):
        return False
    of_rows = b.shape(mean) == [*b.shape(x)[:-1], 1]
    if name_of(node) == "Mul":
        return of_rows and node.inputs[0] is x and node.inputs[1] is x
    exponent = b.constant(node.inputs[1]) if name_of(node) == "Pow" else None
    is_square = exponent is not None and exponent.size == 1 and exponent.item() == 2
    return of_rows and is_square and node.inputs[0] is x
