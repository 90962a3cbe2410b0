"""Softmax and its logarithm."""

import onnx_ir as ir

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
    y = _where_it_counts(b, b.y)
    weighted = b.op.Mul(b.dy, y)
    total = b.sum(weighted, [b.axis(b.x, -1)], keepdims=True)
    return b.op.Sub(weighted, b.op.Mul(y, total))


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
