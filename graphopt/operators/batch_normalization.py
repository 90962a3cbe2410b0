"""Batch normalization, by the statistics of the batch or by given ones.

One that is trained normalizes by the statistics of the batch. They are computed by nodes of their
own, because the CUDA kernel of ONNX Runtime has no training mode.
"""

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.local_functions import call_body
from graphopt.operators.backward import Backward
from graphopt.operators.flops import Outputs, times
from graphopt.operators.record import Moves, NoGradient, carries_gradient, of, operator
from graphopt.operators.rewriting import (
    RunningStatistic,
    describe,
    known_rank,
    mean_over,
    stand_for,
)
from graphopt.shapes import networks
from graphopt.shapes.node import Node

_CENTERED = "graphopt.centered"
"""Metadata of a node whose mean and variance are those of its input: input minus mean."""


def rewrite_batch_normalization(
    op: GraphBuilder, node: ir.Node, trained: Collection[str]
) -> list[RunningStatistic]:
    """Prepare one node; returns the running statistics that it moves."""
    x = node.inputs[0]
    assert x is not None
    if not is_trained(node, trained):
        return []
    axes = [0, *range(2, known_rank(node, x))]
    flat_mean, variance, centered = _statistics(op, x, axes)
    momentum = node.attributes.get_float("momentum", 0.9)
    _write_moved(op, node, (flat_mean, variance), momentum)
    statistics = running_statistics(node, trained, (flat_mean, variance), momentum)
    node.replace_input_with(3, flat_mean)
    node.replace_input_with(4, variance)
    node.resize_outputs(1)
    node.attributes.pop("training_mode", None)
    node.attributes.pop("momentum", None)
    node.meta[_CENTERED] = centered
    return statistics


def _statistics(
    op: GraphBuilder, x: ir.Value, axes: list[int]
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The mean and the variance of each channel, and the input minus the mean."""
    mean = mean_over(op, x, axes, keepdims=True)
    centered = op.Sub(x, mean)
    flat_mean = op.Reshape(mean, [-1])
    variance = mean_over(op, op.Mul(centered, centered), axes, keepdims=False)
    return flat_mean, variance, centered


def _write_moved(
    op: GraphBuilder, node: ir.Node, batch: Sequence[ir.Value], momentum: float
) -> None:
    """Write out the moved statistics, where the model reads them."""
    for moved, old, value in zip(node.outputs[1:3], node.inputs[3:5], batch, strict=False):
        if not (moved.uses() or moved.is_graph_output()):
            continue
        new = op.Add(op.Mul(old, momentum), op.Mul(value, 1 - momentum))
        name, moved.name = moved.name, None
        new.type, new.shape, new.name = moved.type, moved.shape, name
        ir.convenience.replace_all_uses_with(moved, new, replace_graph_outputs=True)


def is_trained(node: ir.Node, trained: Collection[str]) -> bool:
    """Whether it normalizes by the batch: in training mode, or if scale or bias are trained.

    Outside training mode, statistics that the model computes are used as they are.
    """
    if node.attributes.get_int("training_mode", 0):
        return True
    return bool(_trained_names(node, trained)) and any(map(_is_stored, node.inputs[3:5]))


def _is_stored(statistic: ir.Value | None) -> bool:
    """Whether it stands in the model as it is, or in another dtype or shape."""
    producer = None if statistic is None else statistic.producer()
    while producer is not None and of(producer).moves <= Moves.PRECISION:
        statistic = producer.inputs[0]
        producer = None if statistic is None else statistic.producer()
    return producer is None or producer.op_type == "Constant"


def _trained_names(node: ir.Node, trained: Collection[str]) -> list[str]:
    """The parameters on which the scale and the bias depend."""
    waiting = [value for value in reversed(node.inputs[1:3]) if value is not None]
    seen: set[ir.Value] = set()
    names = []
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.name in trained and value.is_initializer():
            names.append(str(value.name))
        producer = value.producer()
        if producer is not None and carries_gradient(producer):
            waiting += [operand for operand in producer.inputs if operand is not None]
    return names


def running_statistics(
    node: ir.Node, trained: Collection[str], batch: Sequence[ir.Value], momentum: float
) -> list[RunningStatistic]:
    """The running statistics of a node, each with the statistic of the batch.

    In training mode, one that is no initializer was given for form's sake: there is none.

    Raises:
        ValueError: One is stored, but not as an initializer; or the model reads the new one.
    """
    names = _trained_names(node, trained)
    statistics = []
    for index, value in zip((3, 4), batch, strict=True):
        running = node.inputs[index]
        if running is None or not running.is_initializer():
            if node.attributes.get_int("training_mode", 0):
                continue
            raise ValueError(
                f"{describe(node)}: a running statistic of it is not an initializer; "
                "export the model so that it is"
            )
        moved = node.outputs[index - 2] if index - 2 < len(node.outputs) else None
        if moved is not None and (moved.uses() or moved.is_graph_output()):
            raise ValueError(
                f"{describe(node)}: its running statistics are read in the model, "
                "expected them to be outputs of batch normalization alone"
            )
        statistics.append(
            RunningStatistic(
                str(running.name), str(value.name), momentum, names[0] if names else None
            )
        )
    return statistics


def use_running_statistics(node: ir.Node) -> bool:
    """Take it out of training mode; whether it was in it.

    One without running statistics of its own normalizes by the batch at all times.
    """
    is_training = node.attributes.get_int("training_mode", 0) or len(node.outputs) > 1
    if not is_training or not all(map(_is_stored_as_it_is, node.inputs[3:5])):
        return False
    node.attributes.pop("training_mode", None)
    for moved, running in zip(node.outputs[1:3], node.inputs[3:5], strict=False):
        if running is not None and (moved.uses() or moved.is_graph_output()):
            stand_for(moved, running)
    node.resize_outputs(1)
    return True


def _is_stored_as_it_is(statistic: ir.Value | None) -> bool:
    return statistic is not None and statistic.is_initializer()


def _flops(node: Node, outputs: Outputs) -> int | None:
    """Subtract, divide, multiply, add; and the statistics of the batch."""
    return times(outputs[0].elements, 7 if node.attributes.integer("training_mode") else 4)


@operator(
    "BatchNormalization",
    rewrite=rewrite_batch_normalization,
    infer=use_running_statistics,
    spreads=True,
    weights=(1,),
    settings=(3, 4),
    is_by_channel=True,
    flops=_flops,
    shape=networks.batch_normalization,
)
def batch_normalization(b: Backward) -> Sequence[ir.Value | NoGradient | None]:
    """With k = scale / √(var + epsilon), per channel.

    By given statistics: dx = k dy. By those of the batch of M elements, the mean and the variance
    depend on x too: dx = k dy - (x - mean) k Σdy(x - mean) / (M (var + epsilon)) - k Σdy / M.
    """
    op, dy, x = b.op, b.dy, b.x
    scale, mean, variance = b.input(1), b.input(3), b.input(4)
    rank = b.rank(x)
    axes = [0, *range(2, rank)]
    per_channel = [1, -1, *[1] * (rank - 2)]
    centered = b.node.meta.get(_CENTERED)
    of_batch = isinstance(centered, ir.Value)
    if of_batch and b.has_kernels(dy, x, mean, variance, scale):
        return _by_kernels(b)
    inverse, k = _factors(op, variance, scale, b.node.attributes.get_float("epsilon", 1e-5))
    if not isinstance(centered, ir.Value):
        centered = op.Sub(x, op.Reshape(mean, per_channel))
    d_bias = b.sum(dy, axes)
    d_normalized = b.sum(op.Mul(dy, centered), axes)
    d_scale = op.Mul(d_normalized, inverse)
    d_x = op.Mul(dy, op.Reshape(k, per_channel))
    if not of_batch:
        d_mean = op.Neg(op.Mul(k, d_bias))
        d_variance = op.Mul(op.Mul(op.Mul(d_normalized, k), op.Mul(inverse, inverse)), -0.5)
        return [d_x, d_scale, d_bias, d_mean, d_variance]
    count = b.count(dy, axes)  # of x too, which is not kept for its shape alone
    k0, k1 = _drift(op, k, inverse, d_bias, d_scale, count)
    channels = b.shape(x)[1]
    if b.provider != "CPUExecutionProvider" and isinstance(channels, int):
        # k1 times it plus k0 in one kernel.
        zeros, ones = (
            np.full(channels, value, (scale.dtype or ir.DataType.FLOAT).numpy()) for value in (0, 1)
        )
        drift = op.BatchNormalization(centered, k1, k0, zeros, ones, epsilon=0.0)
    else:
        drift = op.Add(op.Mul(centered, op.Reshape(k1, per_channel)), op.Reshape(k0, per_channel))
    d_x = op.Sub(d_x, drift)
    return [d_x, d_scale, d_bias, NoGradient.ELSEWHERE, NoGradient.ELSEWHERE]


def _drift(
    op: GraphBuilder,
    k: ir.Value,
    inverse: ir.Value,
    d_bias: ir.Value,
    d_scale: ir.Value,
    count: Operand,
) -> tuple[ir.Value, ir.Value]:
    """What the mean and the variance of the batch take from the gradient of an element."""
    k0 = op.Div(op.Mul(k, d_bias), count)
    k1 = op.Div(op.Mul(op.Mul(k, inverse), d_scale), count)
    return k0, k1


def _by_kernels(b: Backward) -> Sequence[ir.Value | NoGradient | None]:
    """By functions for which there are kernels, which pass over the elements less often."""
    x, scale, mean, variance = b.x, b.input(1), b.input(3), b.input(4)
    rank, epsilon = b.rank(x), b.node.attributes.get_float("epsilon", 1e-5)
    axes, per_channel = [0, *range(2, rank)], [1, -1, *[1] * (rank - 2)]

    def sums(
        op: GraphBuilder, dy: ir.Value, x: ir.Value, mean: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        centered = op.Sub(x, op.Reshape(mean, per_channel))
        over = [op.ReduceSum(v, axes, keepdims=0) for v in (dy, op.Mul(dy, centered))]
        return over[0], over[1]

    def gradient(
        op: GraphBuilder, dy: ir.Value, x: ir.Value, *of_channels: ir.Value
    ) -> tuple[ir.Value, ...]:
        mean, variance, scale = of_channels
        inverse, k = _factors(op, variance, scale, epsilon)
        d_bias, d_normalized = sums(op, dy, x, mean)
        d_scale = op.Mul(d_normalized, inverse)
        elements, channels = (op.Cast(op.Size(v), to=int(ir.DataType.FLOAT)) for v in (x, mean))
        k0, k1 = _drift(op, k, inverse, d_bias, d_scale, op.Div(elements, channels))
        mean, k, k1, k0 = (op.Reshape(value, per_channel) for value in (mean, k, k1, k0))
        drift = op.Add(op.Mul(op.Sub(x, mean), k1), k0)
        return op.Sub(op.Mul(dy, k), drift), d_scale, d_bias

    if not b.needs(0):
        d_bias, d_normalized = call_body(b.op, "BatchNormSums", [b.dy, x, mean], sums, rank, 2)
        inverse, _ = _factors(b.op, variance, scale, epsilon)
        d_scale = b.op.Mul(d_normalized, inverse)
        return [None, d_scale, d_bias, NoGradient.ELSEWHERE, NoGradient.ELSEWHERE]
    name, operands = "BatchNormGradient", [b.dy, x, mean, variance, scale]
    of = (rank, epsilon)
    results = call_body(b.op, name, operands, gradient, of, outputs=3, epsilon=epsilon)
    return [*results, NoGradient.ELSEWHERE, NoGradient.ELSEWHERE]


def _factors(
    op: GraphBuilder, variance: ir.Value, scale: ir.Value, epsilon: float
) -> tuple[ir.Value, ir.Value]:
    """1 / √(var + epsilon), and that times the scale."""
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, epsilon)))
    return inverse, op.Mul(scale, inverse)


def call_statistics(op: GraphBuilder, node: ir.Node) -> None:
    """Let one that normalizes by the batch get its statistics from a function with a kernel.

    Args:
        op: Appends to the graph.
        node: Where it is as `rewrite_batch_normalization` left it; others stay what they are.
    """
    x, centered = node.inputs[0], node.meta.get(_CENTERED)
    if x is None or x.dtype != ir.DataType.FLOAT or not isinstance(centered, ir.Value):
        return
    readers = [value.producer() for value in node.inputs[3:5] if value is not None]
    if [reader and reader.op_type for reader in readers] != ["Reshape", "ReduceMean"]:
        return
    mean, variance = readers
    assert mean is not None
    assert variance is not None
    squares = variance.inputs[0]
    assert squares is not None
    before = [value.producer() for value in (squares, centered, mean.inputs[0]) if value]
    if set(centered.consumers()) != {before[0]} or len(squares.uses()) > 1:
        return  # something else reads them
    rank = known_rank(node, x)
    axes = [0, *range(2, rank)]

    def statistics(op: GraphBuilder, x: ir.Value) -> Sequence[ir.Value]:
        return _statistics(op, x, axes)[:2]

    with op.before(mean):
        values = call_body(op, "BatchNormStatistics", [x], statistics, rank, outputs=2)
    constants = [value for value in mean.inputs[1:] if value is not None]
    for reader, value in zip((mean, variance), values, strict=True):
        value.shape = reader.outputs[0].shape
        reader.op_type = "Identity"  # itself: others know its result
        reader.attributes.clear()
        reader.resize_inputs(1)
        reader.replace_input_with(0, value)
    for unused in before:
        if unused is not None and not unused.outputs[0].uses():
            op.graph.remove(unused, safe=True)
    for shape in constants:
        if shape.is_initializer() and not shape.uses():
            op.graph.initializers.pop(str(shape.name))
