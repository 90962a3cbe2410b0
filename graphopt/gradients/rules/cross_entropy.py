"""Cross entropy of class indices.

ONNX Runtime has no kernel of these operators outside its training package; it takes their
definition, which is slow. The rules write out the forward pass too, and share it.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.gradients._rewrite import replace
from graphopt.gradients.backward import Backward, rule


@rule("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(b: Backward) -> ir.Value:
    """dx = (softmax(x) - onehot(label)) w dL / Σw."""
    op = b.op
    logarithms = op.LogSoftmax(b.x, axis=1)
    logarithms.shape = b.x.shape
    picked = _pick(b, logarithms)
    return op.Mul(op.Sub(op.Exp(logarithms), picked.one_hot), picked.share)


@rule("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(b: Backward) -> ir.Value:
    """dx = -onehot(label) w dL / Σw."""
    picked = _pick(b, b.x)
    return b.op.Neg(b.op.Mul(picked.one_hot, picked.share))


@dataclass(frozen=True)
class _Picked:
    """What the classes of the labels are.

    Attributes:
        one_hot: 1 at the label, along axis 1 of the logarithms.
        share: How much of the gradient each example gets, of size 1 along axis 1, or a scalar.
    """

    one_hot: ir.Value
    share: ir.Value


def _pick(b: Backward, logarithms: ir.Value) -> _Picked:
    """Replace the loss by nodes that pick the logarithm of each label."""
    op, dy = b.op, b.dy
    labels, weights = b.input(1), b.optional(2)
    reduction = b.node.attributes.get_string("reduction", "mean")
    if labels.dtype != ir.DataType.INT64:
        labels = op.Cast(labels, to=ir.DataType.INT64)
    weight: ir.Value | None = None
    if "ignore_index" in b.node.attributes:
        used = op.Not(op.Equal(labels, b.node.attributes.get_int("ignore_index")))
        labels = op.Where(used, labels, op.constant(0))
        weight = op.CastLike(used, logarithms)
    if weights is not None:
        of_class = op.Gather(weights, labels, axis=0)
        weight = of_class if weight is None else op.Mul(of_class, weight)
    index = op.Unsqueeze(labels, [1])
    loss = op.Neg(op.Squeeze(op.GatherElements(logarithms, index, axis=1), [1]))
    if weight is not None:
        loss = op.Mul(loss, weight)
    total = None
    match reduction:
        case "none":
            share = op.Unsqueeze(dy, [1])
        case "sum":
            loss, share = op.ReduceSum(loss, keepdims=0), dy
        case _:
            if weight is None:
                total = op.CastLike(op.Size(labels), logarithms)
            else:
                total = op.ReduceSum(weight, keepdims=0)
            loss, share = op.Div(op.ReduceSum(loss, keepdims=0), total), op.Div(dy, total)
    if weight is not None:
        share = op.Mul(op.Unsqueeze(weight, [1]), share)
    replace(op, b.node, loss)
    classes = b.shape(logarithms)[1]
    depth = classes if isinstance(classes, int) else op.Gather(op.Shape(logarithms), 1, axis=0)
    dtype = (logarithms.dtype or ir.DataType.FLOAT).numpy()
    one_hot = op.OneHot(labels, depth, np.array([0, 1], dtype), axis=1)
    return _Picked(one_hot, share)
