"""Normalizations within an example."""

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.local_functions import call_body
from graphopt.operators.backward import Backward
from graphopt.operators.flops import Outputs, times
from graphopt.operators.record import operator
from graphopt.operators.rewriting import add_outputs, mean_over
from graphopt.shapes import elements, networks
from graphopt.shapes.node import Node


# Its operations are mean, subtract, square, sum, divide, multiply, add.
@operator(
    "LayerNormalization",
    broadcasts=(1, 2),
    spreads=True,
    weights=(1,),
    flops=7,
    shape=networks.layer_normalization,
)
def layer_normalization(b: Backward) -> Iterator[ir.Value | None]:
    """With n = (x - mean) / std and g = dy scale: dx = (g - mean(g) - n mean(g n)) / std.

    Of the mean, each of M elements has 1 / M; of 1 / std, it has -n / (M std²).
    """
    op, dy, x, scale = b.op, b.dy, b.x, b.input(1)
    if b.node.attributes.get_int("stash_type", 1) != 1 and x.dtype != ir.DataType.FLOAT:
        raise b.error("expected stash_type=1")
    add_outputs(op, b.node, 3)
    mean, inverse = (op.CastLike(value, x) for value in b.node.outputs[1:3])
    if _has_kernel(b):
        yield from _by_kernel(b, mean, inverse)
        return
    normalized = op.Mul(op.Sub(x, mean), inverse)
    axes = list(range(b.axis(x, -1), b.rank(x)))
    d_x = _input_gradient(op, op.Mul(dy, scale), normalized, inverse, axes)
    count = b.count(x, axes)
    if b.has_gradient(1):
        d_x = op.Add(d_x, op.Div(op.CastLike(b.gradient(1), x), count))
    if b.has_gradient(2):
        slope = op.Mul(op.CastLike(b.gradient(2), x), op.Mul(inverse, inverse))
        d_x = op.Sub(d_x, op.Div(op.Mul(normalized, slope), count))
    yield d_x
    yield op.Mul(dy, normalized) if b.needs(1) else None
    yield dy if b.needs(2) else None


def _has_kernel(b: Backward) -> bool:
    """Whether rows are as large as the scale and the bias, and nothing else has a gradient."""
    row = b.shape(b.x)[b.axis(b.x, -1) :]
    is_plain = not (b.has_gradient(1) or b.has_gradient(2) or b.infinite)
    same = all(
        list(b.shape(value)) == list(row) for value in b.node.inputs[1:3] if value is not None
    )
    is_known = all(isinstance(size, int) and size for size in row)
    return is_plain and same and is_known and b.has_kernels(b.dy, b.x, b.input(1))


def _by_kernel(b: Backward, mean: ir.Value, inverse: ir.Value) -> Iterator[ir.Value | None]:
    """By a function for which there is a kernel, which passes over the elements once or twice."""
    rank, first = b.rank(b.x), b.axis(b.x, -1)

    def gradients(
        op: GraphBuilder,
        dy: ir.Value,
        x: ir.Value,
        mean: ir.Value,
        inverse: ir.Value,
        scale: ir.Value,
    ) -> tuple[ir.Value, ...]:
        rows, examples = list(range(first, rank)), list(range(first))
        normalized = op.Mul(op.Sub(x, mean), inverse)
        d_x = _input_gradient(op, op.Mul(dy, scale), normalized, inverse, rows)
        sums = [op.Mul(dy, normalized), op.Identity(dy)]
        if examples:
            sums = [op.ReduceSum(value, examples, keepdims=0) for value in sums]
        return d_x, *sums

    operands = [b.dy, b.x, mean, inverse, b.input(1)]
    d_x, d_scale, d_bias = call_body(
        b.op, "LayerNormGradient", operands, gradients, (rank, first), outputs=3
    )
    b.summed_inputs |= {1, 2}
    yield d_x
    yield d_scale if b.needs(1) else None
    yield d_bias if b.needs(2) else None


operator("GroupNormalization", weights=(1,), flops=7, shape=elements.same)
operator("RMSNormalization", weights=(1,), flops=4, shape=elements.same)
operator("MeanVarianceNormalization", flops=5, shape=elements.same)


@operator("InstanceNormalization", spreads=True, weights=(1,), flops=7, shape=elements.same)
def instance_normalization(b: Backward) -> Sequence[ir.Value | None]:
    """As `layer_normalization`, over the spatial axes of each channel."""
    op, dy, x, scale = b.op, b.dy, b.x, b.input(1)
    rank = b.rank(x)
    axes = list(range(2, rank))
    centered = op.Sub(x, b.mean(x, axes, keepdims=True))
    variance = b.mean(op.Mul(centered, centered), axes, keepdims=True)
    epsilon = b.node.attributes.get_float("epsilon", 1e-5)
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, epsilon)))
    normalized = op.Mul(centered, inverse)
    per_channel = op.Reshape(scale, [1, -1, *[1] * (rank - 2)])
    # The scale is the same for all elements of a mean: it is multiplied in at the end.
    d_x = _input_gradient(op, dy, normalized, op.Mul(inverse, per_channel), axes)
    return [d_x, b.sum(op.Mul(dy, normalized), [0, *axes]), b.sum(dy, [0, *axes])]


def _input_gradient(
    op: GraphBuilder, gradient: ir.Value, normalized: ir.Value, factor: ir.Value, axes: list[int]
) -> ir.Value:
    """The product factor (g - mean(g) - n mean(g n)) for the gradient g of normalized n."""

    def mean(x: ir.Value) -> ir.Value:
        return mean_over(op, x, axes, keepdims=True) if axes else x

    along = mean(op.Mul(gradient, normalized))
    centered = op.Sub(gradient, mean(gradient))
    return op.Mul(op.Sub(centered, op.Mul(normalized, along)), factor)


def _lrn_flops(node: Node, outputs: Outputs) -> int | None:
    return times(outputs[0].elements, 2 * node.attributes.integer("size", 1) + 3)


@operator("LRN", flops=_lrn_flops, shape=elements.same)
def lrn(b: Backward) -> ir.Value:
    """With s = bias + alpha mean(x²) over nearby channels, y = x / s^beta.

    dx = dy / s^beta - 2 alpha beta x mean(dy y / s), a mean over the channels whose s contains x.
    """
    op, dy, x, y, attributes = b.op, b.dy, b.x, b.y, b.node.attributes
    size = attributes.get_int("size")
    alpha = attributes.get_float("alpha", 1e-4)
    beta = attributes.get_float("beta", 0.75)
    before, behind = (size - 1) // 2, size // 2
    squares = _mean_of_channels(b, op.Mul(x, x), size, before, behind)
    s = op.Add(op.Mul(squares, alpha), attributes.get_float("bias", 1.0))
    back = _mean_of_channels(b, op.Div(op.Mul(dy, y), s), size, behind, before)
    direct = op.Mul(dy, op.Pow(s, -beta))
    return op.Sub(direct, op.Mul(op.Mul(x, back), 2 * alpha * beta))


def _mean_of_channels(b: Backward, x: ir.Value, size: int, before: int, behind: int) -> ir.Value:
    """The sum over so many channels before and behind, divided by ``size``."""
    op = b.op
    image = op.Reshape(op.Unsqueeze(x, [1]), [0, 1, 0, -1])
    pads = [before, 0, behind, 0]
    mean = op.AveragePool(image, kernel_shape=[size, 1], pads=pads, count_include_pad=1)
    return b.reshape_like(mean, b.x)


@operator("LpNormalization", flops=3, shape=elements.same)
def lp_normalization(b: Backward) -> ir.Value:
    """p=2: dx = (dy - y Σ dy y) / |x|; p=1: sign(x) in place of the first y; 0 where |x| is 0."""
    op, dy, x, y = b.op, b.dy, b.x, b.y
    axis = b.axis(x, -1)
    is_l1 = b.node.attributes.get_int("p", 2) == 1
    if is_l1:
        direction = op.Sign(x)
        norm = b.sum(op.Abs(x), [axis], keepdims=True)
    else:
        direction = y
        norm = op.Sqrt(b.sum(op.Mul(x, x), [axis], keepdims=True))
    is_zero = op.Equal(norm, 0.0)
    inverse = op.Where(is_zero, 0.0, op.Reciprocal(op.Where(is_zero, 1.0, norm)))
    along = b.sum(op.Mul(dy, y), [axis], keepdims=True)
    return op.Mul(op.Sub(dy, op.Mul(direction, along)), inverse)
