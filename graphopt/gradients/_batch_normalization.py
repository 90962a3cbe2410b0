"""Batch normalization: in training mode where it is trained, written out where it is frozen."""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._rewrite import add_outputs, describe, replace


def rewrite_batch_normalization(
    op: GraphBuilder, node: ir.Node, trained: Collection[str]
) -> list[str]:
    """Prepare one node; returns the names of the running statistics that it moves."""
    scale, bias, mean, variance = node.inputs[1:5]
    names = {value.name for value in (scale, bias) if value is not None}
    if not node.attributes.get_int("training_mode", 0) and names.isdisjoint(trained):
        _write_out(op, node)
        return []
    statistics = []
    for value in (mean, variance):
        if value is None or not value.is_initializer():
            raise ValueError(
                f"{describe(node)}: a running statistic of it is not an initializer; "
                "export the model so that it is"
            )
        statistics.append(str(value.name))
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    add_outputs(op, node, 3)
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
    epsilon = op.constant(np.float32(node.attributes.get_float("epsilon", 1e-5)))
    k = op.Div(scale, op.Sqrt(op.Add(variance, epsilon)))
    shift = op.Sub(bias, op.Mul(mean, k))
    y = op.Add(op.Mul(x, op.Reshape(k, per_channel)), op.Reshape(shift, per_channel))
    replace(op, node, y)
