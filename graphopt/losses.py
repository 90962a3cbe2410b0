"""Losses, appended to the forward graph as standard ONNX nodes."""

from collections.abc import Callable

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.labels import checked_labels

LossFunction = Callable[..., ir.Value]


def cross_entropy(op: GraphBuilder, logits: ir.Value, labels: str = "labels") -> ir.Value:
    """Mean of ``-log softmax(logits)[label]``.

    Args:
        op: Appends the nodes.
        logits: Float, shape [N, C] or [N, C, d1, ...]; classes on axis 1.
        labels: Name of the new int64 input of shape [N] or [N, d1, ...].
    """
    shape = _shape(logits, "cross_entropy")
    if len(shape) < 2:
        raise ValueError(
            f"cross_entropy: output '{logits.name}' has shape {shape}, "
            "expected [batch, classes] or [batch, classes, ...]"
        )
    target = checked_labels(op, logits, op.input(labels, ir.DataType.INT64, [shape[0], *shape[2:]]))
    logits = _float32(op, logits)
    if len(shape) > 2:  # the runtime's gradient takes rows of classes only
        last = len(shape) - 1
        logits = op.Flatten(op.Transpose(logits, perm=[0, *range(2, last + 1), 1]), axis=last)
        target = op.Reshape(target, [-1])
    # The gradient reads the second output, the logarithms of the probabilities.
    return op.node("SoftmaxCrossEntropyLoss", [logits, target], outputs=2, reduction="mean")[0]


def mse(op: GraphBuilder, prediction: ir.Value, labels: str = "labels") -> ir.Value:
    """Mean of ``(prediction - label)**2``; ``labels`` has the prediction's shape and dtype."""
    prediction, target = _with_target(op, prediction, labels, "mse")
    error = op.Sub(prediction, target)
    return op.ReduceMean(op.Mul(error, error), keepdims=0)


def l1(op: GraphBuilder, prediction: ir.Value, labels: str = "labels") -> ir.Value:
    """Mean of ``|prediction - label|``; ``labels`` has the prediction's shape and dtype."""
    prediction, target = _with_target(op, prediction, labels, "l1")
    error = op.Sub(prediction, target)
    return op.ReduceMean(op.Abs(error), keepdims=0)


def bce_with_logits(op: GraphBuilder, logits: ir.Value, labels: str = "labels") -> ir.Value:
    r"""Mean binary cross entropy of ``sigmoid(logits)``; ``labels`` in [0, 1], shaped alike.

    .. math:: \log(1 + e^{x}) - x z = (x + |x|) / 2 + \log(1 + e^{-|x|}) - x z

    The right side cannot overflow, and its gradient is exact everywhere: at 0, where the
    derivative of the absolute value is taken as 0, what remains is 1/2 = sigmoid(0).
    """
    logits, target = _with_target(op, logits, labels, "bce_with_logits")
    magnitude = op.Abs(logits)
    positive_part = op.Mul(op.Add(logits, magnitude), 0.5)
    tail = op.Log(op.Add(op.Exp(op.Neg(magnitude)), 1.0))
    # In this order nothing is lost where the first two cancel, as they do for a good prediction.
    return op.ReduceMean(op.Add(op.Sub(positive_part, op.Mul(logits, target)), tail), keepdims=0)


BUILT_IN: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "bce_with_logits": bce_with_logits,
    "l1": l1,
}


def _shape(value: ir.Value, loss: str) -> list[int | str | None]:
    if value.shape is None:
        raise ValueError(
            f"{loss}: the rank of output '{value.name}' is unknown; "
            "declare the shape of this output in the model"
        )
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _with_target(
    op: GraphBuilder, value: ir.Value, labels: str, loss: str
) -> tuple[ir.Value, ir.Value]:
    """The output and a new input of the same shape and dtype, both in float32."""
    shape = _shape(value, loss)
    if value.dtype is None or not value.dtype.is_floating_point():
        raise ValueError(
            f"{loss}: output '{value.name}' has dtype {value.dtype}, expected a floating-point one"
        )
    target = op.input(labels, value.dtype, shape)
    return _float32(op, value), _float32(op, target)


def _float32(op: GraphBuilder, value: ir.Value) -> ir.Value:
    """Losses are computed in float32: the mean of many float16 values is not one."""
    return op.Cast(value, to=ir.DataType.FLOAT) if value.dtype == ir.DataType.FLOAT16 else value
