"""Batch normalization: in training mode where it is trained, written out where it is frozen."""

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._rewrite import add_outputs, describe, replace


@dataclass(frozen=True)
class RunningStatistic:
    """A running mean or variance, which moves towards that of the batch.

    Attributes:
        name: The initializer that holds it.
        batch: The name of the value that holds the statistic of the batch.
        momentum: How much of the old value stays: ``momentum * old + (1 - momentum) * batch``.
        parameter: The trained scale or bias, whose group it belongs to, if there is one.
    """

    name: str
    batch: str
    momentum: float
    parameter: str | None


def rewrite_batch_normalization(
    op: GraphBuilder, node: ir.Node, trained: Collection[str]
) -> list[RunningStatistic]:
    """Prepare one node; returns the running statistics that it moves."""
    scale, bias, mean, variance = node.inputs[1:5]
    names = [str(value.name) for value in (scale, bias) if value and value.name in trained]
    if not node.attributes.get_int("training_mode", 0) and not names:
        _write_out(op, node)
        return []
    add_outputs(op, node, 3)
    momentum = node.attributes.get_float("momentum", 0.9)
    statistics = []
    for index, value in ((3, mean), (4, variance)):
        if value is None or not value.is_initializer():
            raise ValueError(
                f"{describe(node)}: a running statistic of it is not an initializer; "
                "export the model so that it is"
            )
        if node.outputs[index - 2].uses() or node.outputs[index - 2].is_graph_output():
            raise ValueError(
                f"{describe(node)}: its running statistics are read in the model, "
                "expected them to be outputs of batch normalization alone"
            )
        statistics.append(
            RunningStatistic(
                str(value.name),
                str(node.outputs[index - 2].name),
                momentum,
                names[0] if names else None,
            )
        )
        # The runtime's kernel writes the new statistic over its input. It gets zeros of its own
        # instead, and with momentum 0 what it writes is the statistic of the batch.
        zeros = op.Mul(value, 0.0)
        op.graph.remove(zeros.producer())  # type: ignore[arg-type]
        op.graph.insert_before(node, zeros.producer())  # type: ignore[arg-type]
        node.replace_input_with(index, zeros)
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    node.attributes["momentum"] = ir.AttrFloat32("momentum", 0.0)
    return statistics


def _write_out(op: GraphBuilder, node: ir.Node) -> None:
    """Write out y = x * k + (bias - mean * k); the builder would put it into training mode."""
    x, scale, bias, mean, variance = node.inputs[:5]
    if x is None or x.shape is None:
        raise ValueError(
            f"{describe(node)}: the rank of its input is unknown; "
            "declare the shapes of the model's inputs"
        )
    per_channel = [-1] + [1] * (len(x.shape) - 2)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    k = op.Div(scale, op.Sqrt(op.Add(variance, epsilon)))
    shift = op.Sub(bias, op.Mul(mean, k))
    y = op.Add(op.Mul(x, op.Reshape(k, per_channel)), op.Reshape(shift, per_channel))
    replace(op, node, y)
