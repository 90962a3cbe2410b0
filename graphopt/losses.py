"""Losses, appended to the forward graph as standard ONNX nodes."""

from collections.abc import Callable
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from graphopt.builder import GraphBuilder

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
    target = op.input(labels, ir.DataType.INT64, [shape[0], *shape[2:]])
    if len(shape) > 2:  # the runtime's gradient takes rows of classes only
        last = len(shape) - 1
        logits = op.Flatten(op.Transpose(logits, perm=[0, *range(2, last + 1), 1]), axis=last)
        target = op.Reshape(target, [-1])
    # The gradient reads the second output, the logarithms of the probabilities.
    return op.node("SoftmaxCrossEntropyLoss", [logits, target], outputs=2, reduction="mean")[0]


def mse(op: GraphBuilder, prediction: ir.Value, labels: str = "labels") -> ir.Value:
    """Mean of ``(prediction - label)**2``; ``labels`` has the prediction's shape and dtype."""
    error = op.Sub(prediction, _target_like(op, prediction, labels, "mse"))
    return op.ReduceMean(op.Mul(error, error), keepdims=0)


def l1(op: GraphBuilder, prediction: ir.Value, labels: str = "labels") -> ir.Value:
    """Mean of ``|prediction - label|``; ``labels`` has the prediction's shape and dtype."""
    error = op.Sub(prediction, _target_like(op, prediction, labels, "l1"))
    return op.ReduceMean(op.Abs(error), keepdims=0)


def bce_with_logits(op: GraphBuilder, logits: ir.Value, labels: str = "labels") -> ir.Value:
    r"""Mean binary cross entropy of ``sigmoid(logits)``; ``labels`` in [0, 1], shaped alike.

    .. math:: \log(1 + e^{x}) - x z = (x + |x|) / 2 + \log(1 + e^{-|x|}) - x z

    The right side cannot overflow, and its gradient is exact everywhere: at 0, where the
    derivative of the absolute value is taken as 0, what remains is 1/2 = sigmoid(0).
    """
    target = _target_like(op, logits, labels, "bce_with_logits")
    magnitude = op.Abs(logits)
    positive_part = op.Mul(op.Add(logits, magnitude), 0.5)
    softplus = op.Add(positive_part, op.Log(op.Add(op.Exp(op.Neg(magnitude)), 1.0)))
    return op.ReduceMean(op.Sub(softplus, op.Mul(logits, target)), keepdims=0)


BUILT_IN: dict[str, LossFunction] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "bce_with_logits": bce_with_logits,
    "l1": l1,
}


@dataclass(frozen=True)
class ClassLabels:
    """A graph input that holds class indices.

    ONNX Runtime reads past the end of the logits for a class that does not exist, so whoever feeds
    the graph has to look first.

    Attributes:
        name: The input.
        classes: Labels are 0 to ``classes - 1``.
        ignored: A label outside that range that is allowed, if any.
    """

    name: str
    classes: int
    ignored: int | None = None


def class_labels(model: onnx.ModelProto) -> list[ClassLabels]:
    """The class labels among the inputs of a model whose shapes have been inferred."""
    graph = model.graph
    inputs = {value.name for value in graph.input}
    producer = {name: node for node in graph.node for name in node.output}
    shapes = {value.name: value.type.tensor_type.shape for value in graph.value_info}
    shapes |= {v.name: v.type.tensor_type.shape for v in (*graph.input, *graph.output)}
    found = []
    for node in graph.node:
        if node.op_type not in ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"):
            continue
        logits, labels = node.input[0], node.input[1]
        while labels in producer and producer[labels].op_type in ("Reshape", "Flatten", "Cast"):
            labels = producer[labels].input[0]
        dims = [dim.dim_value for dim in shapes[logits].dim] if logits in shapes else []
        if labels in inputs and len(dims) > 1 and dims[1]:
            ignored = [a.i for a in node.attribute if a.name == "ignore_index"]
            found.append(ClassLabels(labels, dims[1], ignored[0] if ignored else None))
    return found


def _shape(value: ir.Value, loss: str) -> list[int | str | None]:
    if value.shape is None:
        raise ValueError(
            f"{loss}: the rank of output '{value.name}' is unknown; "
            "declare the shape of this output in the model"
        )
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def _target_like(op: GraphBuilder, value: ir.Value, labels: str, loss: str) -> ir.Value:
    shape = _shape(value, loss)
    if value.dtype is None or not value.dtype.is_floating_point():
        raise ValueError(
            f"{loss}: output '{value.name}' has dtype {value.dtype}, expected a floating-point one"
        )
    return op.input(labels, value.dtype, shape)
