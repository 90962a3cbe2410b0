"""Fourier transforms, which are linear."""

import math
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.operators.backward import Backward
from graphopt.operators.flops import Outputs, plus, times
from graphopt.operators.record import operator
from graphopt.operators.rewriting import known_rank, replace
from graphopt.shapes import transforms
from graphopt.shapes.node import Node

_LEAST_OPSET_OF_AXIS_INPUT = 20


def _dft_flops(node: Node, outputs: Outputs) -> int | None:
    """Of the fast transform, 5 n log2(n) for a signal of length n."""
    length = transforms.length(node)
    if not isinstance(length, int) or length < 1:
        return None
    del outputs
    shape, axis = list(node.shape()[:-1]), transforms.axis(node)
    if axis is None:
        return None
    shape.pop(axis)
    return times(*shape, math.ceil(5 * length * math.log2(length)))


@operator("DFT", flops=_dft_flops, shape=transforms.dft)
def dft(b: Backward) -> ir.Value:
    """By direction, with the length L and w = exp(2πi / L).

    Forward: dx[n] = Σ dy[k] w^(kn), as L times the inverse transform; its real part for real x.
    Inverse: dx[k] = Σ dy[n] w^(-kn) / L, as the transform divided by L.
    Inverse of one side: the same of the real dy, twice where x[k] also stands for its mirror image.
    """
    inverse = b.node.attributes.get_int("inverse", 0)
    onesided = b.node.attributes.get_int("onesided", 0)
    op, axis, given = b.op, _axis(b), b.optional(1)
    length = b.size(b.y if inverse else b.x, axis) if given is None else _given(b, given)
    if not inverse:
        d_x = _times(b, _transform(b, b.dy, length, axis, inverse=1), length)
    else:
        d_x = _transform(b, b.dy, length, axis, onesided=onesided)
        d_x = op.Div(d_x, _number(b, length))
        if onesided:
            d_x = op.Mul(d_x, _sides(b, length, axis))
    last = b.rank(b.x) - 1
    if b.shape(b.x)[last] != 2:
        d_x = op.Slice(d_x, [0], b.size(b.x, last), [last])
    if given is None:
        return d_x
    return _fitted(b, d_x, _bins(b, length) if inverse and onesided else length, axis)


def _given(b: Backward, length: ir.Value) -> Operand:
    known = b.constant(length)
    return b.op.Reshape(length, [1]) if known is None else known.reshape(1).astype(np.int64)


def _axis(b: Backward) -> int:
    rank, axis = b.rank(b.x), b.node.attributes.get_int("axis", 1)
    if b.op.opset >= _LEAST_OPSET_OF_AXIS_INPUT:
        given = b.optional(2)
        known = None if given is None else b.constant(given)
        if given is not None and known is None:
            raise b.error(f"its gradient needs the axis, but '{given.name}' is not a constant")
        axis = -2 if known is None else int(known.item())
    return axis % rank


def _transform(
    b: Backward, x: ir.Value, length: Operand, axis: int, *, inverse: int = 0, onesided: int = 0
) -> ir.Value:
    return transformed(b.op, x, _scalar(b.op, length), axis, inverse=inverse, onesided=onesided)


def transformed(
    op: GraphBuilder,
    x: ir.Value,
    length: Operand,
    axis: int,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> ir.Value:
    """The transform of an axis, by whichever form of the operator the opset has."""
    if op.opset >= _LEAST_OPSET_OF_AXIS_INPUT:
        return op.DFT(x, length, np.array(axis, np.int64), inverse=inverse, onesided=onesided)
    return op.DFT(x, length, axis=axis, inverse=inverse, onesided=onesided)


def _scalar(op: GraphBuilder, size: Operand) -> Operand:
    return size.reshape(()) if isinstance(size, np.ndarray) else op.Squeeze(size, [0])


def _number(b: Backward, length: Operand) -> Operand:
    return float(length.item()) if isinstance(length, np.ndarray) else b.op.CastLike(length, b.x)


def _times(b: Backward, x: ir.Value, length: Operand) -> ir.Value:
    return b.op.Mul(x, _number(b, length))


def _bins(b: Backward, length: Operand) -> Operand:
    """How many frequencies one side has."""
    if isinstance(length, np.ndarray):
        return length // 2 + 1
    return b.op.Add(b.op.Div(length, 2), 1)


def _sides(b: Backward, length: Operand, axis: int) -> Operand:
    """1 for the frequencies that have no mirror image, the first and the middle one; else 2."""
    op, shape = b.op, [-1] + [1] * (b.rank(b.x) - 1 - axis)
    if isinstance(length, np.ndarray):
        bins = np.arange(length.item() // 2 + 1)
        is_single = (bins == 0) | (2 * bins == length.item())
        dtype = (b.x.dtype or ir.DataType.FLOAT).numpy()
        return np.where(is_single, 1, 2).astype(dtype).reshape(shape)
    places = op.Range(np.array(0), _scalar(op, _bins(b, length)), np.array(1))
    single = op.Or(op.Equal(places, 0), op.Equal(op.Mul(places, 2), length))
    two, one = (op.CastLike(np.array(float(n), np.float32), b.x) for n in (2, 1))
    return op.Reshape(op.Where(single, one, two), shape)


def _fitted(b: Backward, x: ir.Value, length: Operand, axis: int) -> ir.Value:
    """Of a signal that was cut or filled up: without what was filled in, zeros for what was cut."""
    op, size = b.op, b.size(b.x, axis)
    if isinstance(size, np.ndarray) and isinstance(length, np.ndarray) and size == length:
        return x
    x = op.Slice(x, [0], size, [axis])
    zero = np.zeros(1, np.int64)
    pads: list[Operand] = [zero] * (2 * b.rank(b.x))
    if isinstance(size, np.ndarray) and isinstance(length, np.ndarray):
        pads[axis + b.rank(b.x)] = np.maximum(size - length, 0)
    else:
        pads[axis + b.rank(b.x)] = op.Max(op.Sub(size, length), zero)
    return op.Pad(x, b.concat(pads))


def rewrite_stft(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """As a transform of frames, which are gathered and multiplied by the window."""
    del trained
    signal, step = node.inputs[0], node.inputs[1]
    window, frame_length = (*node.inputs[2:], None, None)[:2]
    known_rank(node, signal)
    assert signal is not None
    length = op.Shape(signal, start=1, end=2)
    if frame_length is not None:
        width = op.Cast(op.Reshape(frame_length, [1]), to=int(ir.DataType.INT64))
    else:
        width = length if window is None else op.Shape(window)
    stride = op.Cast(op.Reshape(step, [1]), to=int(ir.DataType.INT64))
    count = op.Add(op.Div(op.Sub(length, width), stride), 1)
    starts = op.Mul(_counted(op, count), stride)
    places = op.Add(op.Unsqueeze(starts, [1]), _counted(op, width))
    frames = op.Gather(signal, places, axis=1)
    if window is not None:
        frames = op.Mul(frames, op.Unsqueeze(window, [1]))
    onesided = node.attributes.get_int("onesided", 1)
    replace(op, node, transformed(op, frames, None, 2, onesided=onesided))


def _counted(op: GraphBuilder, count: ir.Value) -> ir.Value:
    return op.Range(np.array(0), op.Squeeze(count, [0]), np.array(1))


def _stft_flops(node: Node, outputs: Outputs) -> int | None:
    """Of the window, and of a fast transform of each frame."""
    width = transforms.frame_length(node)
    if not isinstance(width, int) or width < 1 or outputs[0].shape is None:
        return None
    batch, frames, *_ = outputs[0].shape
    fast = times(batch, frames, math.ceil(5 * width * math.log2(width)))
    return plus(fast, times(batch, frames, width, node.shape()[-1]) if node.has(2) else 0)


operator("STFT", rewrite=rewrite_stft, settings=(2,), flops=_stft_flops, shape=transforms.stft)
