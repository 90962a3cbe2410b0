"""Rewriting a forward model so that ONNX Runtime's builder can differentiate it, exactly.

Each rewrite leaves what the model computes as it is, save one: batch normalization whose scale or
bias is trained normalizes by the statistics of the batch, as training means.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes import common as passes

from graphopt.builder import GraphBuilder

# Older operators lack gradients or what the update needs; newer ones onnxruntime-training.
_MIN_OPSET, _MAX_OPSET = 17, 21


@dataclass(frozen=True)
class RunningStatistic:
    """A running mean or variance of batch normalization, carried from step to step.

    Attributes:
        name: The initializer that holds it.
    """

    name: str


def prepare(
    proto: onnx.ModelProto, trained: Collection[str]
) -> tuple[ir.Model, list[RunningStatistic]]:
    """A copy of the model that can be differentiated, and its running statistics.

    Args:
        proto: The forward model, which is left as it is.
        trained: The names of the trained parameters.

    Raises:
        ValueError: The model cannot be brought to an opset that the builder knows, or an operator
            cannot be rewritten.
    """
    proto = _convert_opset(proto)
    model = ir.from_proto(proto)
    passes.InlinePass()(model)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))
    statistics: list[RunningStatistic] = []
    for node in list(model.graph):
        if node.domain != "":
            continue
        match node.op_type:
            case "BatchNormalization":
                statistics += _batch_normalization(model.graph, node, trained)
            case "LayerNormalization":
                _add_outputs(node, 3)
            case "Dropout" | "SoftmaxCrossEntropyLoss":
                _add_outputs(node, 2)
            case "AveragePool":
                _explicit_pads(node)
                _average_pool(model.graph, node)
            case "Conv" | "ConvTranspose" | "MaxPool":
                _explicit_pads(node)
    model.graph.sort()
    return model, statistics


def _convert_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    opset = next((entry.version for entry in proto.opset_import if not entry.domain), 0)
    target = min(max(opset, _MIN_OPSET), _MAX_OPSET)
    if opset == target:
        return proto
    try:
        return version_converter.convert_version(proto, target)
    except Exception as error:  # the converter raises whatever its C++ side gives it
        raise ValueError(
            f"the model has opset {opset}, a training graph needs {_MIN_OPSET} to {_MAX_OPSET}, "
            f"and converting it failed: {error}; export the model again with opset {target}"
        ) from None


def _add_outputs(node: ir.Node, count: int) -> None:
    """Give a node the optional outputs that its gradient reads."""
    known = len(node.outputs)
    node.resize_outputs(max(count, known))
    for index in range(known, count):
        node.outputs[index].name = f"{node.outputs[0].name}/{node.op_type}_{index}"


def _batch_normalization(
    graph: ir.Graph, node: ir.Node, trained: Collection[str]
) -> list[RunningStatistic]:
    training = node.attributes.get_int("training_mode", 0)
    scale, bias, mean, variance = node.inputs[1:5]
    assert scale is not None and bias is not None and mean is not None and variance is not None
    if not training and scale.name not in trained and bias.name not in trained:
        _frozen_batch_normalization(graph, node)
        return []
    for value in (mean, variance):
        if not value.is_initializer():
            raise ValueError(
                f"batch normalization '{node.name or node.outputs[0].name}': its running "
                f"statistic '{value.name}' is not an initializer; export the model so that it is"
            )
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    _add_outputs(node, 3)
    return [RunningStatistic(str(mean.name)), RunningStatistic(str(variance.name))]


def _frozen_batch_normalization(graph: ir.Graph, node: ir.Node) -> None:
    """Write out y = x * k + (bias - mean * k); the builder would put it into training mode."""
    x, scale, bias, mean, variance = node.inputs[:5]
    assert x is not None
    if x.shape is None:
        raise ValueError(
            f"batch normalization '{node.name or node.outputs[0].name}': the rank of its input "
            f"'{x.name}' is unknown; declare the shapes of the model's inputs"
        )
    channel_first = [-1] + [1] * (len(x.shape) - 2)
    op = GraphBuilder(graph)
    epsilon = np.float32(node.attributes.get_float("epsilon", 1e-5))
    k = op.Div(scale, op.Sqrt(op.Add(variance, op.constant(epsilon))))
    shift = op.Sub(bias, op.Mul(mean, k))
    y = op.Add(op.Mul(x, op.Reshape(k, channel_first)), op.Reshape(shift, channel_first))
    _replace(graph, node, y)


def _explicit_pads(node: ir.Node) -> None:
    """Write automatic padding out; the runtime's gradient of a convolution gets it wrong."""
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        return
    x = node.inputs[0]
    assert x is not None
    spatial = [d if isinstance(d, int) else None for d in (x.shape or ())][2:]
    kernel = node.attributes.get_ints("kernel_shape", ())
    if not kernel and node.op_type != "MaxPool" and node.inputs[1].shape is not None:  # type: ignore[union-attr]
        kernel = tuple(node.inputs[1].shape.numpy()[2:])  # type: ignore[union-attr]
    if auto_pad == "VALID":
        pads = [0] * (2 * len(kernel))
    elif node.op_type == "ConvTranspose" or not kernel:
        raise ValueError(_cannot_pad(node, auto_pad))
    else:
        ones = [1] * len(kernel)
        strides = node.attributes.get_ints("strides", ones)
        dilations = node.attributes.get_ints("dilations", ones)
        begins, ends = [], []
        for size, k, stride, dilation in zip(spatial, kernel, strides, dilations, strict=False):
            extent = dilation * (k - 1) + 1
            if stride == 1:
                total = extent - 1
            elif size is None:
                raise ValueError(_cannot_pad(node, auto_pad))
            else:
                total = max((-(-size // stride) - 1) * stride + extent - size, 0)
            small, large = total // 2, total - total // 2
            begins.append(small if auto_pad == "SAME_UPPER" else large)
            ends.append(large if auto_pad == "SAME_UPPER" else small)
        if len(begins) != len(kernel):
            raise ValueError(_cannot_pad(node, auto_pad))
        pads = begins + ends
    node.attributes["auto_pad"] = ir.AttrString("auto_pad", "NOTSET")
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def _cannot_pad(node: ir.Node, auto_pad: str) -> str:
    return (
        f"{node.op_type} '{node.name or node.outputs[0].name}': auto_pad={auto_pad} cannot be "
        "written as pads, because its spatial size is not known; export the model with explicit "
        "pads or with a static spatial size"
    )


def _average_pool(graph: ir.Graph, node: ir.Node) -> None:
    """Write average pooling as a depthwise convolution.

    The runtime's own gradient of it ends the process where the batch is dynamic.
    """
    x = node.inputs[0]
    assert x is not None
    channels = x.shape[1] if x.shape is not None and len(x.shape) > 1 else None
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    if not isinstance(channels, int) or node.attributes.get_int("ceil_mode", 0):
        raise ValueError(
            f"AveragePool '{node.name or node.outputs[0].name}': a gradient needs a known number "
            "of channels and ceil_mode=0; declare the input's shape or export it so"
        )
    op = GraphBuilder(graph)
    window = {
        "group": channels,
        "pads": list(node.attributes.get_ints("pads", [0] * 2 * len(kernel))),
        "strides": list(node.attributes.get_ints("strides", [1] * len(kernel))),
        "dilations": list(node.attributes.get_ints("dilations", [1] * len(kernel))),
    }
    dtype = x.dtype.numpy() if x.dtype is not None else np.dtype(np.float32)
    ones = np.ones((channels, 1, *kernel), dtype)
    if not any(window["pads"]) or node.attributes.get_int("count_include_pad", 0):
        y = op.Conv(x, op.constant(ones / dtype.type(np.prod(kernel))), **window)
    else:  # each place is divided by how many elements its window really has
        weight = op.constant(ones)
        here = op.CastLike(op.constant(dtype.type(1)), x)
        count = op.Conv(op.Expand(here, op.Shape(x)), weight, **window)
        y = op.Div(op.Conv(x, weight, **window), count)
    _replace(graph, node, y)


def _replace(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    old = node.outputs[0]
    name, value.type, value.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=False)
    value.name = name
