"""Cross entropy of class indices.

ONNX Runtime has no kernel of these operators outside its training package; it takes their
definition, which is slow. The rules write out the forward pass too, and share it.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.local_functions import call_body
from graphopt.operators.backward import Backward, Dim
from graphopt.operators.flops import per_element
from graphopt.operators.labels import checked_labels
from graphopt.operators.record import operator
from graphopt.operators.rewriting import replace
from graphopt.shapes import networks


def rewrite_cross_entropy(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """Check its labels."""
    del trained
    logits, labels = node.inputs[:2]
    assert logits is not None
    assert labels is not None
    ignored = node.attributes.get_int("ignore_index") if "ignore_index" in node.attributes else None
    node.replace_input_with(1, checked_labels(op, logits, labels, ignored))


@operator(
    "SoftmaxCrossEntropyLoss",
    rewrite=rewrite_cross_entropy,
    settings=(2,),
    flops=5,
    shape=networks.cross_entropy,
)
def softmax_cross_entropy_loss(b: Backward) -> ir.Value:
    """dx = (softmax(x) - onehot(label)) w dL / Σw, and of log_prob that of LogSoftmax."""
    op = b.op
    with b.named_as_node():
        logarithms = op.LogSoftmax(b.x, axis=1)
    logarithms.shape = b.x.shape
    forward = _replace_loss(b, logarithms)
    share = _share(b, forward)
    classes = b.shape(b.x)[1]

    def gradient(op: GraphBuilder, y: ir.Value, labels: ir.Value, share: ir.Value) -> ir.Value:
        return op.Mul(op.Sub(op.Exp(y), _one_hot(op, y, labels, classes)), share)

    if not b.has_gradient(1):
        operands = [logarithms, forward.labels, share]
        if b.rank(b.x) == 2 and b.has_kernels(b.x, b.dy):
            return call_body(op, "CrossEntropyGradient", operands, gradient, classes)[0]
        return gradient(op, *operands)
    softmax = op.Exp(logarithms)
    d_x = op.Mul(op.Sub(softmax, _one_hot(op, b.x, forward.labels, classes)), share)
    total = b.sum(b.gradient(1), [1], keepdims=True)
    d_logarithms = op.Sub(b.gradient(1), op.Mul(softmax, total))
    return op.Add(d_x, d_logarithms) if b.has_gradient(0) else d_logarithms


@operator(
    "NegativeLogLikelihoodLoss",
    rewrite=rewrite_cross_entropy,
    settings=(2,),
    flops=per_element(1, index=1),
    shape=networks.cross_entropy,
)
def negative_log_likelihood_loss(b: Backward) -> ir.Value:
    """dx = -onehot(label) w dL / Σw."""
    forward = _replace_loss(b, b.x)
    one_hot = _one_hot(b.op, b.x, forward.labels, b.shape(b.x)[1])
    share = _share(b, forward)
    if b.is_steep:
        return b.op.Where(b.op.Equal(one_hot, 1.0), b.op.Neg(share), 0.0)
    return b.op.Neg(b.op.Mul(one_hot, share))


@dataclass(frozen=True)
class _Forward:
    """What the forward pass computes, and the gradient reads.

    Attributes:
        labels: The classes, int64; 0 where they are ignored.
        used: Whether they are not ignored, None where all are used.
        weight: The weight of each example, None where all have 1.
        total: The sum of the weights, by which a mean is divided.
    """

    labels: ir.Value
    used: ir.Value | None
    weight: ir.Value | None
    total: Operand


def _replace_loss(b: Backward, logarithms: ir.Value) -> _Forward:
    """Replace the loss by nodes that pick the logarithm of each label."""
    op, attributes = b.op, b.node.attributes
    labels, class_weights = b.input(1), b.optional(2)
    used = weight = total = None
    with b.named_as_node():
        if labels.dtype != ir.DataType.INT64:
            labels = op.Cast(labels, to=ir.DataType.INT64)
        if "ignore_index" in attributes:
            used = op.Not(op.Equal(labels, attributes.get_int("ignore_index")))
            labels = op.Where(used, labels, op.constant(0))
            weight = op.CastLike(used, logarithms)
        if class_weights is not None:
            of_class = op.Gather(class_weights, labels, axis=0)
            weight = of_class if weight is None else op.Mul(of_class, weight)
        picked = op.GatherElements(logarithms, op.Unsqueeze(labels, [1]), axis=1)
        loss = op.Neg(op.Squeeze(picked, [1]))
        if weight is not None:
            loss = op.Mul(loss, weight)
        reduction = attributes.get_string("reduction", "mean")
        if reduction != "none":
            loss = op.ReduceSum(loss, keepdims=0)
        if reduction == "mean":
            if weight is None:
                total = b.count(labels, range(b.rank(labels)), logarithms)
            else:
                total = op.ReduceSum(weight, keepdims=0)
            loss = op.Div(loss, total)
    has_log_prob = len(b.outputs) > 1 and b.outputs[1].name
    replace(op, b.node, loss, *([logarithms] if has_log_prob else []))
    return _Forward(labels, used, weight, total)


def _one_hot(op: GraphBuilder, like: ir.Value, labels: ir.Value, classes: Dim) -> ir.Value:
    """1 at the label, along axis 1."""
    depth = classes if isinstance(classes, int) else op.Gather(op.Shape(like), 1, axis=0)
    one_hot = op.OneHot(labels, depth, np.array([0, 1], np.float32), axis=1)
    # On the CPU, ONNX Runtime has no other kernel.
    return one_hot if like.dtype == ir.DataType.FLOAT else op.CastLike(one_hot, like)


def _share(b: Backward, forward: _Forward) -> ir.Value:
    """How much of the gradient each example gets: of size 1 along axis 1, or a scalar."""
    op, share = b.op, b.dy
    total = forward.total
    if b.node.attributes.get_string("reduction", "mean") == "none":
        share = op.Unsqueeze(share, [1])
    if total is not None and forward.weight is not None:
        # Where no example counts, the loss is not a number, but the gradient is 0.
        total = op.Where(op.Equal(total, 0.0), 1.0, total)
    if total is not None:
        share = op.Div(share, total)
    if forward.weight is None:
        return share
    share = op.Mul(op.Unsqueeze(forward.weight, [1]), share)
    if b.is_steep and forward.used is not None:
        return op.Where(op.Unsqueeze(forward.used, [1]), share, 0.0)
    return share
