"""Batch normalization in the mode that each module is in.

PyTorch's exporter writes all as in evaluation. In training mode it becomes a node in training mode,
whose running statistics a training graph carries. In evaluation mode with a trained weight or bias
it is written out, because graphopt trains a node BatchNormalization by the statistics of the batch;
so is one that has no running statistics.
"""

from typing import Any, cast

import torch
from onnxscript import opset18
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from graphopt.torch._nodes import call, replace

aten = torch.ops.aten


@torch.library.custom_op("graphopt::batch_norm", mutates_args=())
def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    momentum: float,
    epsilon: float,
) -> torch.Tensor:
    """Batch normalization by the statistics of the batch."""
    del mean, variance, momentum
    return torch.nn.functional.batch_norm(x, None, None, weight, bias, True, 0.0, epsilon)


@batch_norm.register_fake
def _(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(x)


TRAINED = torch.ops.graphopt.batch_norm.default


def to_onnx(
    x: Any, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, epsilon: float
) -> Any:
    """The node of one in training mode; ONNX's momentum is the share of the old value."""
    y, _, _ = opset18.BatchNormalization(
        x, weight, bias, mean, variance, epsilon=epsilon, momentum=1 - momentum, training_mode=1
    )
    return y


def check_momentum(module: torch.nn.Module) -> None:
    """Refuse averages over all batches: ONNX's running statistics are exponential averages.

    Raises:
        ValueError: A layer in training mode has ``momentum=None``.
    """
    for name, layer in module.named_modules():
        if (
            layer.training
            and getattr(layer, "track_running_stats", False)
            and getattr(layer, "momentum", 0.0) is None
        ):
            raise ValueError(
                f"'{name}' ({type(layer).__name__}) has momentum=None, which averages over all "
                "batches; a training graph has exponential averages: give it a number, such as 0.1"
            )


def settle(program: ExportedProgram) -> None:
    """Replace what a node BatchNormalization in evaluation mode would not say."""
    trained = set(program.graph_signature.inputs_to_parameters)
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is not aten.batch_norm.default:
            continue
        affine = [operand for operand in node.args[1:3] if isinstance(operand, Node)]
        moves = any(o.op != "placeholder" or o.name in trained for o in affine)
        if node.args[3] is None or (moves and not node.args[5]):
            replace(graph, node, _written_out(graph, node))
        elif node.args[5]:
            replace(graph, node, _by_batch(graph, node))
    program.graph_module.recompile()


def _by_batch(graph: Graph, node: Node) -> Node:
    x, weight, bias, mean, variance, _, momentum, epsilon, *_ = cast(tuple[Any, ...], node.args)
    value = x.meta["val"]
    with graph.inserting_before(node):
        weight, bias = (
            call(graph, node, aten.full.default, [value.shape[1]], fill, dtype=value.dtype)
            if given is None
            else given
            for given, fill in ((weight, 1.0), (bias, 0.0))
        )
        return call(graph, node, TRAINED, x, weight, bias, mean, variance, momentum, epsilon)


def _written_out(graph: Graph, node: Node) -> Node:
    x, weight, bias, mean, variance, _, _, epsilon, *_ = cast(tuple[Any, ...], node.args)
    per_channel = [-1, *[1] * (x.meta["val"].dim() - 2)]

    def op(target: Any, *args: Any, **kwargs: Any) -> Node:
        return call(graph, node, target, *args, **kwargs)

    def channels(operand: Any) -> Node:
        return op(aten.reshape.default, operand, per_channel)

    with graph.inserting_before(node):
        if mean is None:
            axes = [0, *range(2, x.meta["val"].dim())]
            centered = op(aten.sub.Tensor, x, op(aten.mean.dim, x, axes, True))
            square = op(aten.mul.Tensor, centered, centered)
            variance = op(aten.mean.dim, square, axes)
        else:
            centered = op(aten.sub.Tensor, x, channels(mean))
        scale = op(aten.rsqrt.default, op(aten.add.Tensor, variance, epsilon))
        if weight is not None:
            scale = op(aten.mul.Tensor, scale, weight)
        y = op(aten.mul.Tensor, centered, channels(scale))
        return y if bias is None else op(aten.add.Tensor, y, channels(bias))
