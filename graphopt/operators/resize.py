"""Resampling of images.

Resize is linear, and each axis is resampled by itself: y = A x, and dx = Aᵀ dy. The operator itself
makes Aᵀ, from an identity matrix, so that all its modes are as the runtime has them. What it puts
around a part that reaches over the edges is no function of x: there, A is 0.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.builder import Operand
from graphopt.operators.backward import Backward
from graphopt.operators.flops import Outputs, times
from graphopt.operators.record import operator
from graphopt.shapes import windows
from graphopt.shapes.values import Node

# Of these, an enlargement by a whole number repeats each element.
_REPEATING = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_ceil"),
}


def _flops(node: Node, outputs: Outputs) -> int | None:
    points = {"nearest": 0, "linear": 2, "cubic": 4}[node.attributes.text("mode", "nearest")]
    after = outputs[0].shape
    if not points or after is None:
        return None if points else 0
    axes = sum(old != new for old, new in zip(node.shape(), after, strict=True))
    return times(2, outputs[0].elements, points**axes)


operator("Upsample", settings=(1,), flops=_flops, shape=windows.resize)


@operator("Resize", settings=(1, 2), flops=_flops, shape=windows.resize)
def resize(b: Backward) -> ir.Value:
    """Along each resized axis, the product with the matrix of the resampling."""
    _check(b)
    op, rank = b.op, b.rank(b.x)
    if (factors := _repeats(b)) is not None:
        mean = op.AveragePool(b.dy, kernel_shape=factors, strides=factors)
        return op.Mul(mean, float(np.prod(factors)))
    dx = b.dy
    for position, axis in reversed(list(enumerate(_axes(b)))):
        if _keeps(b, position, axis):
            continue
        if axis == rank - 1:
            dx = op.MatMul(dx, _matrix(b, position, axis, transposed=False))
        elif axis == rank - 2:
            dx = op.MatMul(_matrix(b, position, axis, transposed=True), dx)
        else:
            perm = list(range(rank))
            perm[axis], perm[-1] = perm[-1], perm[axis]
            last = op.Transpose(dx, perm=perm)
            product = op.MatMul(last, _matrix(b, position, axis, transposed=False))
            dx = op.Transpose(product, perm=perm)
    return dx


def _check(b: Backward) -> None:
    attributes = b.node.attributes
    policy = attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch" and _sizes(b) is not None:
        raise b.error(
            f"keep_aspect_ratio_policy '{policy}' has no gradient here; give the sizes that result "
            "and leave the policy out"
        )
    same = [before == after for before, after in zip(b.shape(b.x), b.shape(b.y), strict=True)]
    if _crops(b):
        _check_crop(b, same)
        return
    for position, axis in enumerate(_axes(b)):
        is_static = isinstance(b.shape(b.x)[axis], int)
        if is_static and same[axis] and not all(same) and not _keeps(b, position, axis):
            raise b.error(
                f"the scale of axis {axis} is not 1 but keeps the size {b.shape(b.x)[axis]}; "
                "give sizes, or the scale 1"
            )


def _check_crop(b: Backward, same: list[bool]) -> None:
    """Of an axis whose size it keeps, the runtime makes a copy of the identity matrix."""
    if all(same):
        return
    parts = b.constant(b.optional(1))
    for position, axis in enumerate(_axes(b)):
        sizes = (b.shape(b.x)[axis], b.shape(b.y)[axis])
        differ = all(isinstance(size, int) for size in sizes) and sizes[0] != sizes[1]
        if parts is None:
            is_whole = axis < 2 < b.rank(b.x)  # images and channels
        else:
            is_whole = parts.reshape(2, -1)[:, position].tolist() == [0, 1]
        if not is_whole and not differ:
            raise b.error(
                f"its gradient needs sizes of axis {axis} before and after it, which are known and "
                "differ; crop that axis with Slice, and resize in another mode"
            )


def _axes(b: Backward) -> list[int]:
    rank = b.rank(b.x)
    return [axis % rank for axis in b.node.attributes.get_ints("axes", range(rank))]


def _sizes(b: Backward) -> ir.Value | None:
    return b.optional(3)


def _scales(b: Backward) -> np.ndarray | None:
    """The scales, if they are given as a constant."""
    return None if _sizes(b) is not None else b.constant(b.optional(2))


def _crops(b: Backward) -> bool:
    """Whether it reads a part of each axis, which the second input says."""
    mode = b.node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    return mode == "tf_crop_and_resize"


def _keeps(b: Backward, position: int, axis: int) -> bool:
    """Whether it leaves this axis as it is."""
    if _crops(b):
        before, after, parts = b.shape(b.x)[axis], b.shape(b.y)[axis], b.constant(b.optional(1))
        ends = None if parts is None else parts.reshape(2, -1)[:, position].tolist()
        return before == after and ends == [0, 1]
    if _sizes(b) is None:
        scales = _scales(b)
        return scales is not None and float(scales[position]) == 1
    before, after = b.shape(b.x)[axis], b.shape(b.y)[axis]
    return before is not None and before == after


def _repeats(b: Backward) -> list[int] | None:
    """How often it repeats the elements of an image, if that is all it does."""
    attributes, rank = b.node.attributes, b.rank(b.x)
    transformation = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounding = attributes.get_string("nearest_mode", "round_prefer_floor")
    is_nearest = attributes.get_string("mode", "nearest") == "nearest"
    if not is_nearest or (transformation, rounding) not in _REPEATING or rank not in (3, 4, 5):
        return None
    factors = [1.0] * rank
    for position, axis in enumerate(_axes(b)):
        factor = _factor(b, position, axis)
        if factor is None or factor < 1 or factor % 1:
            return None
        factors[axis] = factor
    return [int(factor) for factor in factors[2:]] if factors[:2] == [1, 1] else None


def _factor(b: Backward, position: int, axis: int) -> float | None:
    """How much it enlarges an axis; None where that is unknown."""
    if _keeps(b, position, axis):
        return 1.0
    scales = _scales(b)
    if scales is not None:
        return float(scales[position])
    before, after = b.shape(b.x)[axis], b.shape(b.y)[axis]
    if _sizes(b) is None or not isinstance(before, int) or not isinstance(after, int):
        return None
    return after / before if before else None


def _matrix(b: Backward, position: int, axis: int, *, transposed: bool) -> ir.Value:
    """What Resize makes of an identity matrix: the matrix A, or its transpose."""
    op = b.op
    size = b.size(b.x, axis)
    identity = op.EyeLike(b.zeros(b.concat([size, size]), ir.DataType.FLOAT))
    part = _part(b, position, transposed) if _crops(b) else None
    arguments: list[Operand]
    if (sizes := _sizes(b)) is not None:
        resized = op.Slice(sizes, [position], [position + 1])
        arguments = [part, None, _pair(b, resized, size, transposed)]
    else:
        scale = op.Slice(b.input(2), [position], [position + 1])
        arguments = [part, _pair(b, scale, np.ones(1, np.float32), transposed)]
    kept: dict[str, Any] = {
        name: attribute.value
        for name, attribute in b.node.attributes.items()
        if name not in ("axes", "keep_aspect_ratio_policy", "extrapolation_value")
    }
    matrix = op.Resize(identity, *arguments, **kept)
    return matrix if b.x.dtype in (None, ir.DataType.FLOAT) else op.CastLike(matrix, b.x)


def _pair(b: Backward, resized: ir.Value, other: Operand, transposed: bool) -> ir.Value:
    pair = (other, resized) if transposed else (resized, other)
    return b.op.Concat(*pair, axis=0)


def _part(b: Backward, position: int, transposed: bool) -> ir.Value:
    """The part of the matrix's axes that is read: of the resized one as it is given, else all."""
    op = b.op
    count = len(_axes(b))
    ends = [op.Slice(b.input(1), [at], [at + 1]) for at in (position, position + count)]
    kind = (b.input(1).dtype or ir.DataType.FLOAT).numpy()
    parts = [(end, np.full(1, whole, kind)) for whole, end in enumerate(ends)]
    return op.Concat(
        *(end for part in parts for end in (part[::-1] if transposed else part)), axis=0
    )
