"""Losses, appended to the forward graph as standard ONNX nodes."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt._slips import is_of_torch, kind_of
from graphopt.builder import GraphBuilder
from graphopt.manifest import LossEntry
from graphopt.operators.labels import checked_labels, with_shape
from graphopt.shapes.in_place import infer_shapes
from graphopt.versions import IR_VERSION

LossFunction = Callable[..., ir.Value]
LABELS = "labels"
"""The input that a built-in loss reads, where nobody says otherwise."""


def cross_entropy(op: GraphBuilder, logits: ir.Value, labels: str = LABELS) -> ir.Value:
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
    target = with_shape(op, checked_labels(op, logits, target), logits, without=1)
    logits = _float32(op, logits)
    if len(shape) > 2:  # the runtime's gradient takes rows of classes only
        last = len(shape) - 1
        logits = op.Flatten(op.Transpose(logits, perm=[0, *range(2, last + 1), 1]), axis=last)
        target = op.Reshape(target, [-1])
    # The gradient reads the second output, the logarithms of the probabilities.
    return op.node("SoftmaxCrossEntropyLoss", [logits, target], outputs=2, reduction="mean")[0]


def mse(op: GraphBuilder, prediction: ir.Value, labels: str = LABELS) -> ir.Value:
    """Mean of ``(prediction - label)**2``; ``labels`` has the prediction's shape and dtype."""
    prediction, target = _with_target(op, prediction, labels, "mse")
    error = op.Sub(prediction, target)
    return op.ReduceMean(op.Mul(error, error), keepdims=0)


def l1(op: GraphBuilder, prediction: ir.Value, labels: str = LABELS) -> ir.Value:
    """Mean of ``|prediction - label|``; ``labels`` has the prediction's shape and dtype."""
    prediction, target = _with_target(op, prediction, labels, "l1")
    error = op.Sub(prediction, target)
    return op.ReduceMean(op.Abs(error), keepdims=0)


def huber(op: GraphBuilder, prediction: ir.Value, labels: str = LABELS) -> ir.Value:
    """Mean of ``e**2 / 2`` where ``|e| <= 1``, of ``|e| - 1/2`` beyond; e is prediction - label.

    ``labels`` has the prediction's shape and dtype. With n = min(abs(e), 1) both are
    ``n * (|e| - n / 2)``, which needs no choice between two tensors; its gradient is that of
    either branch, at 1 too.
    """
    prediction, target = _with_target(op, prediction, labels, "huber")
    error = op.Abs(op.Sub(prediction, target))
    near = op.Min(error, 1.0)
    return op.ReduceMean(op.Mul(near, op.Sub(error, op.Mul(near, 0.5))), keepdims=0)


def bce_with_logits(op: GraphBuilder, logits: ir.Value, labels: str = LABELS) -> ir.Value:
    """Mean binary cross entropy of ``sigmoid(logits)``; ``labels`` in [0, 1], shaped alike.

    Of a logit x and a label z, it is::

        log(1 + exp(x)) - x·z = (x + |x|) / 2 + log(1 + exp(-|x|)) - x·z

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
    "huber": huber,
    "bce_with_logits": bce_with_logits,
    "l1": l1,
}


def append_loss(
    op: GraphBuilder, loss: str | LossFunction, loss_output: str | None, labels: str
) -> ir.Value:
    """Append a loss to a forward graph and make it the output ``loss``.

    Args:
        op: Appends to the graph.
        loss: One of `BUILT_IN`, a scalar output of the graph, or a function that appends nodes.
        loss_output: The output that the loss applies to, where there are several.
        labels: The name of the new input that a built-in loss reads.

    Raises:
        TypeError: ``loss`` is neither text nor a function, or the function returns no value.
        ValueError: The loss is unknown or not a scalar, or it is not clear what it applies to; an
            argument has no effect on it.
    """
    outputs = {str(value.name): value for value in op.graph.outputs}
    if isinstance(loss, str) and loss in BUILT_IN:
        value = BUILT_IN[loss](op, _chosen(outputs, loss_output, loss), labels)
    elif labels != LABELS and (callable(loss) or (isinstance(loss, str) and loss in outputs)):
        raise ValueError(
            f"labels: got '{labels}', which has no effect: only a built-in loss "
            f"({_listed(BUILT_IN)}) gets an input of this name; leave it out"
        )
    elif isinstance(loss, str):
        if loss not in outputs:
            raise ValueError(
                f"loss: got '{loss}', expected {_listed(BUILT_IN)}, "
                f"a scalar output of the model ({_listed(outputs)}), or a function"
            )
        if loss_output is not None:
            raise ValueError(
                f"loss_output: got '{loss_output}', but the loss is the output '{loss}' itself; "
                "leave it out"
            )
        value = outputs[loss]
    elif is_of_torch(loss) or getattr(loss, "__module__", None) == "torch.nn.functional":
        raise TypeError(
            f"loss: got {kind_of(loss)}, expected {_listed(BUILT_IN)}, the name of an output of "
            "the model, or a function that appends ONNX nodes; or export the loss with the module, "
            "as its output"
        )
    elif callable(loss):
        chosen = list(outputs.values())
        if loss_output is not None:
            chosen = [_chosen(outputs, loss_output, "loss")]
        value = loss(op, *chosen)
        if not isinstance(value, ir.Value):
            raise TypeError(
                f"loss: the function returned {type(value).__name__}, expected the scalar value of "
                "the graph that op.ReduceMean(...) or the like returns"
            )
    else:
        raise TypeError(f"loss: got {type(loss).__name__}, expected a string or a function")
    return report_loss(op, value)


def loss_entry(
    loss: str | LossFunction,
    loss_output: str | None,
    nodes: Iterable[ir.Node],
    straight_through: bool,
    precision: str | None = None,
) -> LossEntry:
    """What a loss is, for the metadata.

    Args:
        loss: As `append_loss` has it.
        loss_output: The same.
        nodes: Those that it has appended.
        straight_through: Whether gradients go through quantization.
        precision: In what the model is computed where that is safe; None for its own.
    """
    kind = precision or LossEntry.precision
    if isinstance(loss, str):
        return LossEntry(loss, loss_output, straight_through, precision=kind)
    name = getattr(loss, "__qualname__", type(loss).__name__)
    operators = tuple(node.op_type for node in nodes)
    return LossEntry(name, loss_output, straight_through, operators, kind)


def read_by(
    loss: str | LossFunction, loss_output: str | None, outputs: Sequence[str]
) -> Sequence[str]:
    """The outputs of a model that a loss reads; all, where it is not clear."""
    if isinstance(loss, str) and loss in outputs and loss not in BUILT_IN:
        return [loss]
    return [name for name in outputs if loss_output in (name, None)] or outputs


def report_loss(op: GraphBuilder, value: ir.Value) -> ir.Value:
    """Make a value of the graph its output ``loss``.

    Raises:
        ValueError: It is not a floating-point scalar.
    """
    value = _scalar(op, value)
    return value if value.name == "loss" else op.output(value, "loss")


def _chosen(outputs: dict[str, ir.Value], loss_output: str | None, loss: str) -> ir.Value:
    if loss_output is None and len(outputs) == 1:
        return next(iter(outputs.values()))
    if loss_output is None:
        raise ValueError(
            f"loss '{loss}': the model has several outputs ({_listed(outputs)}); "
            "say which one with loss_output=..."
        )
    if loss_output not in outputs:
        raise ValueError(f"loss_output: got '{loss_output}', expected one of {_listed(outputs)}")
    return outputs[loss_output]


def _scalar(op: GraphBuilder, value: ir.Value) -> ir.Value:
    """The loss, if it is a floating-point scalar; where that is not known, the graph checks it."""
    infer_shapes(ir.Model(op.graph, ir_version=IR_VERSION))
    dtype, shape = value.dtype, value.shape
    if dtype is not None and not dtype.is_floating_point():
        raise ValueError(f"loss: got {dtype.numpy().name}, expected a floating-point scalar")
    if shape:
        raise ValueError(
            f"loss: got shape {_sizes(shape)}, expected a scalar of shape []; "
            "reduce it, for example by ReduceMean with keepdims=0"
        )
    if shape is None:
        checked = op.Reshape(value, np.zeros(0, np.int64))
        if dtype is not None:
            checked.dtype = dtype
        if value.name == "loss" and value.is_graph_output():
            op.graph.outputs[op.graph.outputs.index(value)] = checked
            value.name, checked.name = op.fresh_name("loss/unchecked"), "loss"
        return checked
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _shape(value: ir.Value, loss: str) -> list[int | str | None]:
    if value.shape is None:
        raise ValueError(
            f"{loss}: the rank of output '{value.name}' is unknown; "
            "declare the shape of this output in the model"
        )
    return _sizes(value.shape)


def _sizes(shape: ir.Shape) -> list[int | str | None]:
    return [size if isinstance(size, int) else size.value for size in shape]


def _with_target(
    op: GraphBuilder, value: ir.Value, labels: str, loss: str
) -> tuple[ir.Value, ir.Value]:
    """The output and a new input of the same shape and dtype, both in float32."""
    shape = _shape(value, loss)
    if value.dtype is None or not value.dtype.is_floating_point():
        raise ValueError(
            f"{loss}: output '{value.name}' has dtype {value.dtype}, expected a floating-point one"
        )
    target = with_shape(op, op.input(labels, value.dtype, shape), value)
    return _float32(op, value), _float32(op, target)


def _float32(op: GraphBuilder, value: ir.Value) -> ir.Value:
    """Losses are computed in float32: the mean of many values of 16 bits is not one."""
    narrow = value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return op.Cast(value, to=ir.DataType.FLOAT) if narrow else value
