"""Batch normalization for the runtime's builder, which knows it in training mode only."""

from collections.abc import Collection

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.batch_normalization import is_trained, running_statistics
from graphopt.operators.rewriting import RunningStatistic, add_outputs, describe, replace


def rewrite_for_builder(
    op: GraphBuilder, node: ir.Node, trained: Collection[str]
) -> list[RunningStatistic]:
    """Prepare one node; returns the running statistics that it moves."""
    momentum = node.attributes.get_float("momentum", 0.9)
    if not is_trained(node, trained):
        _write_out(op, node)
        return []
    add_outputs(op, node, 3)
    statistics = running_statistics(node, trained, node.outputs[1:3], momentum)
    for index in (3, 4):
        # The runtime's kernel writes the new statistic over its input. It gets zeros of its own
        # instead, and with momentum 0 what it writes is the statistic of the batch.
        zeros = op.Mul(node.inputs[index], 0.0)
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
