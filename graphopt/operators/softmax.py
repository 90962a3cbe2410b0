"""Softmax and its logarithm."""

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.local_functions import call_body
from graphopt.operators._masks import rewrite_softmax
from graphopt.operators.backward import Backward
from graphopt.operators.record import operator
from graphopt.shapes import elements

# Behind these, a result is the same number.
_SAME = {"Cast", "CastLike", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_SELECTS = {"IsNaN", "Where"}


# Its operations are maximum, subtract, exponential, sum, divide.
@operator("Softmax", rewrite=rewrite_softmax, flops=5, shape=elements.same)
def softmax(b: Backward) -> ir.Value:
    """dx = y (dy - Σ dy y).

    A row whose x is -inf throughout is NaN. Where something else is selected for it, as for the
    rows of an attention that are masked whole, dy is 0, and so is dx.
    """
    y, axis = _where_it_counts(b, b.y), b.axis(b.x, -1)

    def gradient(op: GraphBuilder, dy: ir.Value, y: ir.Value) -> ir.Value:
        weighted = op.Mul(dy, y)
        total = op.ReduceSum(weighted, [axis], keepdims=1)
        return op.Sub(weighted, op.Mul(y, total))

    if axis == b.rank(b.x) - 1 and b.has_kernels(b.dy, y):
        return call_body(b.op, "SoftmaxGradient", [b.dy, y], gradient, axis)[0]
    return gradient(b.op, b.dy, y)


# Its operations are maximum, subtract, exponential, sum, subtract.
@operator("LogSoftmax", flops=5, shape=elements.same)
def log_softmax(b: Backward) -> ir.Value:
    """dx = dy - softmax(x) Σ dy; rows of NaN as in `softmax`."""
    total = b.sum(b.dy, [b.axis(b.x, -1)], keepdims=True)
    return b.op.Sub(b.dy, b.op.Mul(b.op.Exp(_where_it_counts(b, b.y)), total))


def _where_it_counts(b: Backward, y: ir.Value) -> ir.Value:
    """The result, and 0 where it is NaN and no gradient comes from it, if that may be."""
    if not _is_selected(y):
        return y
    is_left_out = b.op.And(b.op.IsNaN(y), b.op.Equal(b.dy, 0.0))
    return b.op.Where(is_left_out, 0.0, y)


def _is_selected(y: ir.Value) -> bool:
    """Whether a node chooses between the result and something else."""
    return any(
        reader.op_type in _SELECTS or (reader.op_type in _SAME and _is_selected(reader.outputs[0]))
        for reader in y.consumers()
        if not reader.domain
    )
