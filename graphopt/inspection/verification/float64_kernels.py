"""Operators in float64 that ONNX Runtime lacks, and ONNX's reference evaluator computes slowly."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.inspection.verification.batches import Array


def _ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    attribute = node.attributes.get(name)
    return list(default if attribute is None else attribute.as_ints())


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _float(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def _text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def _pads(
    node: ir.Node, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """What is put before and behind each spatial axis."""
    count, auto = len(kernel), _text(node, "auto_pad", "NOTSET")
    if not auto.startswith("SAME"):
        pads = [0] * (2 * count) if auto == "VALID" else _ints(node, "pads", [0] * 2 * count)
        return list(zip(pads[:count], pads[count:], strict=True))
    found = []
    for size, length, stride in zip(sizes, kernel, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + length - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return found


def conv(node: ir.Node, x: Array, w: Array, b: Array | None = None) -> Array:
    """Conv: for each place of the kernel one product of matrices.

    Args:
        node: The node.
        x: Shape [N, C, d1, ...].
        w: Shape [M, C / group, k1, ...].
        b: Shape [M].
    """
    count, group = x.ndim - 2, _int(node, "group", 1)
    strides, dilations = (_ints(node, name, [1] * count) for name in ("strides", "dilations"))
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *_pads(node, x.shape[2:], reach, strides)])
    sizes = [
        (size - length) // stride + 1
        for size, length, stride in zip(x.shape[2:], reach, strides, strict=True)
    ]
    rows: Any = x.reshape(len(x), group, -1, *x.shape[2:])
    weights: Any = w.reshape(group, len(w) // group, *w.shape[1:])
    y: Any = 0.0
    for place in itertools.product(*map(range, w.shape[2:])):
        window = tuple(
            slice(p * d, p * d + (size - 1) * s + 1, s)
            for p, d, size, s in zip(place, dilations, sizes, strides, strict=True)
        )
        part = rows[(slice(None), slice(None), slice(None), *window)]
        part = part.reshape(*part.shape[:3], math.prod(sizes))
        y = y + np.matmul(weights[(slice(None), slice(None), slice(None), *place)], part)
    y = y.reshape(len(x), len(w), *sizes)
    return np.asarray(y if b is None else y + b.reshape(-1, *[1] * count))


def conv_transpose(node: ir.Node, x: Array, w: Array, b: Array | None = None) -> Array:
    """ConvTranspose: what each place of the kernel adds to the result.

    Args:
        node: The node.
        x: Shape [N, C, d1, ...].
        w: Shape [C, M / group, k1, ...].
        b: Shape [M].
    """
    count, group = x.ndim - 2, _int(node, "group", 1)
    strides, dilations = (_ints(node, name, [1] * count) for name in ("strides", "dilations"))
    extra = _ints(node, "output_padding", [0] * count)
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    whole = [
        (size - 1) * s + length + more
        for size, s, length, more in zip(x.shape[2:], strides, reach, extra, strict=True)
    ]
    if "output_shape" in node.attributes or _text(node, "auto_pad", "NOTSET") != "NOTSET":
        raise NotImplementedError("ConvTranspose with output_shape or auto_pad")
    rows = x.reshape(len(x), group, x.shape[1] // group, -1)
    weights: Any = w.reshape(group, x.shape[1] // group, *w.shape[1:])
    y = np.zeros((len(x), group, w.shape[1], *whole))
    for place in itertools.product(*map(range, w.shape[2:])):
        factor = weights[(slice(None), slice(None), slice(None), *place)].swapaxes(1, 2)
        part = np.matmul(factor, rows).reshape(len(x), group, w.shape[1], *x.shape[2:])
        window = tuple(
            slice(p * d, p * d + (size - 1) * s + 1, s)
            for p, d, size, s in zip(place, dilations, x.shape[2:], strides, strict=True)
        )
        y[(slice(None), slice(None), slice(None), *window)] += part
    y = y.reshape(len(x), group * w.shape[1], *whole)
    pads = _ints(node, "pads", [0] * 2 * count)
    ends = zip(pads[:count], pads[count:], whole, strict=True)
    y = y[(slice(None), slice(None), *(slice(low, size - high) for low, high, size in ends))]
    return y if b is None else y + b.reshape(-1, *[1] * count)


def erf(node: ir.Node, x: Array) -> Array:  # noqa: ARG001
    """Erf."""
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x)).reshape(x.shape)


def gelu(node: ir.Node, x: Array) -> Array:
    """Gelu, exact or by a hyperbolic tangent."""
    if _text(node, "approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + erf(node, x / math.sqrt(2))))


def mean_variance_normalization(node: ir.Node, x: Array) -> Array:
    """MeanVarianceNormalization."""
    axes = tuple(_ints(node, "axes", (0, 2, 3)))
    centered = x - x.mean(axis=axes, keepdims=True)
    root = np.sqrt(np.mean(centered**2, axis=axes, keepdims=True))
    return np.asarray(centered / (root + 1e-9))


def shrink(node: ir.Node, x: Array) -> Array:
    """Shrink."""
    bias, limit = _float(node, "bias", 0.0), _float(node, "lambd", 0.5)
    return np.where(x < -limit, x + bias, np.where(x > limit, x - bias, 0.0))


def average_pool(node: ir.Node, x: Array) -> Array:
    """AveragePool; with ``ceil_mode``, windows may end behind the padded input, not begin there."""
    count = x.ndim - 2
    kernel = _ints(node, "kernel_shape", [])
    strides, dilations = (_ints(node, name, [1] * count) for name in ("strides", "dilations"))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = [(0, 0), (0, 0), *_pads(node, x.shape[2:], reach, strides)]
    padded, ones = np.pad(x, pads), np.pad(np.ones(x.shape[2:]), pads[2:])
    if _int(node, "count_include_pad", 0):
        ones = np.ones_like(ones)
    up = int(bool(_int(node, "ceil_mode", 0)))
    sizes, behind = [], []
    for axis, (length, stride) in enumerate(zip(reach, strides, strict=True)):
        size, end = padded.shape[2 + axis], pads[2 + axis][1]
        steps = (size - length + up * (stride - 1)) // stride
        steps -= up and steps * stride >= size - end
        sizes.append(steps + 1)
        behind.append((0, max(steps * stride + length - size, 0)))
    padded, ones = np.pad(padded, [(0, 0), (0, 0), *behind]), np.pad(ones, behind)
    total, divisor = np.zeros((*x.shape[:2], *sizes)), np.zeros(sizes)
    for place in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(p * d, p * d + (size - 1) * s + 1, s)
            for p, d, size, s in zip(place, dilations, sizes, strides, strict=True)
        )
        total += padded[(slice(None), slice(None), *window)]
        divisor += ones[window]
    return np.asarray(total / divisor)


def global_average_pool(node: ir.Node, x: Array) -> Array:  # noqa: ARG001
    """GlobalAveragePool."""
    return np.asarray(x.mean(axis=tuple(range(2, x.ndim)), keepdims=True))


def global_max_pool(node: ir.Node, x: Array) -> Array:  # noqa: ARG001
    """GlobalMaxPool."""
    return np.asarray(x.max(axis=tuple(range(2, x.ndim)), keepdims=True))


def batch_normalization(
    node: ir.Node, x: Array, scale: Array, bias: Array, mean: Array, variance: Array
) -> Array:
    """BatchNormalization, the first output: by the batch in training mode."""
    if _int(node, "training_mode", 0):
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        mean, variance = x.mean(axis=axes), x.var(axis=axes)
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    root = np.sqrt(variance + _float(node, "epsilon", 1e-5)).reshape(shape)
    centered = x - mean.reshape(shape)
    return np.asarray(centered / root * scale.reshape(shape) + bias.reshape(shape))


def _along(node: ir.Node, x: Array, value: Array) -> Array:
    """A scale or a zero, to be broadcast with what is quantized."""
    if value.size == 1:
        return value.reshape(())
    axis, block = _int(node, "axis", 1) % x.ndim, _int(node, "block_size", 0)
    if value.ndim == 1:
        return value.reshape([-1 if at == axis else 1 for at in range(x.ndim)])
    repeated = np.repeat(value, max(block, 1), axis=axis)
    return np.take(repeated, range(x.shape[axis]), axis=axis)


def quantize(node: ir.Node, x: Array, scale: Array, zero: Array | None = None) -> Array:
    """QuantizeLinear, to integers of 8, 16 or 32 bits."""
    kind = ir.DataType(_int(node, "output_dtype", 0) or int(ir.DataType.UINT8))
    dtype = kind.numpy() if zero is None else zero.dtype
    if dtype.kind not in "iu" or dtype.name.endswith("int4"):
        raise NotImplementedError(f"QuantizeLinear to {dtype}")
    level = np.rint(x / _along(node, x, scale))
    if zero is not None:
        level = level + _along(node, x, zero).astype(np.float64)
    limits = np.iinfo(dtype)
    return np.clip(level, limits.min, limits.max).astype(dtype)


def dequantize(node: ir.Node, x: Array, scale: Array, zero: Array | None = None) -> Array:
    """DequantizeLinear."""
    level = x.astype(np.float64)
    if zero is not None:
        level = level - _along(node, x, zero).astype(np.float64)
    return np.asarray(level * _along(node, x, scale))


def dynamic_quantize(node: ir.Node, x: Array) -> tuple[Array, ...]:  # noqa: ARG001
    """DynamicQuantizeLinear: integers, scale, zero."""
    least, most = min(x.min(), 0.0), max(x.max(), 0.0)
    scale = (most - least) / 255 or 1.0
    zero = np.clip(np.rint(-least / scale), 0, 255)
    level = np.clip(np.rint(x / scale) + zero, 0, 255)
    return level.astype(np.uint8), np.asarray(scale), np.asarray(zero, np.uint8)


KERNELS: dict[str, Callable[..., Any]] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": dynamic_quantize,
    "Erf": erf,
    "Gelu": gelu,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MeanVarianceNormalization": mean_variance_normalization,
    "QuantizeLinear": quantize,
    "Shrink": shrink,
}
"""By operator; each gets the node and its inputs, and gives an array, or a tuple of them."""
