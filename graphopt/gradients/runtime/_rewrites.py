"""What the builder of onnxruntime-training gets wrong, or does not know, written in another way."""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.batch_normalization import is_trained, running_statistics
from graphopt.operators.rewriting import (
    RunningStatistic,
    add_outputs,
    describe,
    known_rank,
    replace,
)
from graphopt.operators.window import known, padding


def average_pool(op: GraphBuilder, node: ir.Node) -> None:
    """Write average pooling, whose pads are explicit, as a depthwise convolution.

    The runtime's own gradient of it ends the process where the batch is dynamic.
    """
    x = node.inputs[0]
    channels = x.shape[1] if x is not None and x.shape is not None and len(x.shape) > 1 else None
    if not isinstance(channels, int) or node.attributes.get_int("ceil_mode", False):
        raise ValueError(
            f"{describe(node)}: its gradient needs a known number of channels and ceil_mode=0; "
            "declare the shapes of the model's inputs, or export it so"
        )
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    pads = list(node.attributes.get_ints("pads", [0] * 2 * len(kernel)))
    window = {
        "group": channels,
        "pads": pads,
        "strides": list(node.attributes.get_ints("strides", [1] * len(kernel))),
        "dilations": list(node.attributes.get_ints("dilations", [1] * len(kernel))),
    }
    dtype = x.dtype.numpy() if x is not None and x.dtype is not None else np.dtype(np.float32)
    ones = np.ones((channels, 1, *kernel), dtype)
    if not any(pads) or node.attributes.get_int("count_include_pad", False):
        y = op.Conv(x, (ones / np.prod(kernel)).astype(dtype), **window)
    else:  # each place is divided by how many elements its window really has
        count = op.Conv(op.Expand(np.ones((), dtype), op.Shape(x)), ones, **window)
        y = op.Div(op.Conv(x, ones, **window), count)
    replace(op, node, y)


def batch_normalization(
    op: GraphBuilder, node: ir.Node, trained: Collection[str]
) -> list[RunningStatistic]:
    """Put a node into training mode, the only one that the builder knows, or write it out."""
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
    per_channel = [-1] + [1] * (known_rank(node, x) - 2)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    k = op.Div(scale, op.Sqrt(op.Add(variance, epsilon)))
    shift = op.Sub(bias, op.Mul(mean, k))
    y = op.Add(op.Mul(x, op.Reshape(k, per_channel)), op.Reshape(shift, per_channel))
    replace(op, node, y)


def layer_normalization(op: GraphBuilder, node: ir.Node) -> None:
    """Give a node the bias and the outputs that the runtime's gradient needs."""
    add_outputs(op, node, 3)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return
    scale = node.inputs[1]
    if scale is None or scale.shape is None or not scale.shape.is_static():
        raise ValueError(f"{describe(node)}: the shape of its scale is unknown; make it static")
    dtype = scale.dtype.numpy() if scale.dtype is not None else np.dtype(np.float32)
    node.resize_inputs(3)
    node.replace_input_with(2, op.constant(np.zeros(scale.shape.numpy(), dtype)))


def matmul(node: ir.Node) -> None:
    """Refuse operands that may be vectors: the gradient would be wrong, or building it fail.

    Those that are known to be will be written as matrices.
    """
    for operand in node.inputs:
        known_rank(node, operand)


def transpose(node: ir.Node) -> None:
    """Write out the default permutation, which reverses the axes: the gradient needs it."""
    if "perm" not in node.attributes:
        reverse = list(reversed(range(known_rank(node, node.inputs[0]))))
        node.attributes["perm"] = ir.AttrInt64s("perm", reverse)


def write_out_pads(node: ir.Node) -> None:
    """Set the pads of a convolution or pooling node that has ``auto_pad``.

    The runtime's gradient gets those of a convolution wrong.
    """
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return
    kernel, x = _kernel(node), node.inputs[0]
    pads = None
    if kernel is not None and (mode == "VALID" or node.op_type != "ConvTranspose"):
        shape = None if x is None else x.shape
        pads = padding(node, kernel, [None] * len(kernel) if shape is None else shape[2:])
    if pads is None:
        raise ValueError(
            f"{describe(node)}: auto_pad={mode} cannot be written as pads, because a size that it "
            "depends on is not known; export the model with explicit pads or static sizes"
        )
    begin, end = pads
    node.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
    node.attributes["pads"] = ir.AttrInt64s("pads", begin + end)


def _kernel(node: ir.Node) -> list[int] | None:
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    if kernel:
        return kernel
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return None if weight is None or weight.shape is None else known(weight.shape[2:])
