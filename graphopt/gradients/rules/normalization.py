"""Normalizations within an example."""

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.gradients._rewrite import add_outputs
from graphopt.gradients.backward import Backward, rule


@rule("LayerNormalization")
def layer_normalization(b: Backward) -> Sequence[ir.Value | None]:
    """With n = (x - mean) / σ and g = dy scale: dx = (g - mean(g) - n mean(g n)) / σ."""
    op, dy, x = b.op, b.dy, b.x
    if b.has_gradient(1) or b.has_gradient(2):
        raise b.error("its second or third output is read, which would have no gradient")
    if b.node.attributes.get_int("stash_type", 1) != 1 and x.dtype != ir.DataType.FLOAT:
        raise b.error("expected stash_type=1")
    add_outputs(op, b.node, 3)
    mean, inverse = (op.CastLike(value, x) for value in b.node.outputs[1:3])
    axis = b.axis(x, -1)
    lead, normalized = list(range(axis)), list(range(axis, b.rank(x)))
    n = op.Mul(op.Sub(x, mean), inverse)
    d_n = op.Mul(dy, b.input(1))
    drift = op.Mul(n, b.mean(op.Mul(d_n, n), normalized, keepdims=True))
    d_x = op.Mul(op.Sub(op.Sub(d_n, b.mean(d_n, normalized, keepdims=True)), drift), inverse)
    return [d_x, b.sum(op.Mul(dy, n), lead), b.sum(dy, lead)]
