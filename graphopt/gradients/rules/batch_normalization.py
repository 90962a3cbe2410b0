"""Batch normalization, by the statistics of the batch or by given ones."""

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.gradients._batch_normalization import BATCH_STATISTICS
from graphopt.gradients.backward import Backward, NoGradient, rule


@rule("BatchNormalization")
def batch_normalization(b: Backward) -> Sequence[ir.Value | NoGradient]:
    """With k = scale / √(var + epsilon), per channel.

    By given statistics: dx = k dy. By those of the batch of M elements, the mean and the variance
    depend on x too: dx = k dy - (x - mean) k Σdy(x - mean) / (M (var + epsilon)) - k Σdy / M.
    """
    op, dy, x = b.op, b.dy, b.x
    scale, mean, variance = b.input(1), b.input(3), b.input(4)
    rank = b.rank(x)
    axes = [0, *range(2, rank)]
    per_channel = [1, -1, *[1] * (rank - 2)]
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, b.node.attributes.get_float("epsilon", 1e-5))))
    k = op.Mul(scale, inverse)
    centered = b.node.meta.get(BATCH_STATISTICS)
    of_batch = isinstance(centered, ir.Value)
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
    count = b.count(x, axes)
    k0 = op.Div(op.Mul(k, d_bias), count)
    k1 = op.Div(op.Mul(op.Mul(k, inverse), d_scale), count)
    drift = op.Mul(centered, op.Reshape(k1, per_channel))
    d_x = op.Sub(d_x, op.Add(drift, op.Reshape(k0, per_channel)))
    return [d_x, d_scale, d_bias, NoGradient.ELSEWHERE, NoGradient.ELSEWHERE]
