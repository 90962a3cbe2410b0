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
from graphopt.shapes.node import Node

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
    if _keeps_ratio(b):
        if len(_axes(b)) > 2 or _crops(b):
            raise b.error(
                "with keep_aspect_ratio_policy, its gradient needs one or two axes, and another "
                "mode than tf_crop_and_resize; name them by axes, or leave the policy out"
            )
        if min(b.node.attributes.get_ints("axes", [0])) < 0:
            raise b.error(
                "with keep_aspect_ratio_policy and axes that count from the end, ONNX Runtime does "
                "not resize; count them from the front"
            )
        return
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


def _keeps_ratio(b: Backward) -> bool:
    """Whether all axes are resized by the scale of one of them."""
    policy = b.node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    return policy != "stretch" and _sizes(b) is not None


def _keeps(b: Backward, position: int, axis: int) -> bool:
    """Whether it leaves this axis as it is."""
    if _keeps_ratio(b):
        return False
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
    if (
        _keeps_ratio(b)
        or not is_nearest
        or (transformation, rounding) not in _REPEATING
        or rank not in (3, 4, 5)
    ):
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
    if _keeps_ratio(b) and len(_axes(b)) == 2:
        return _matrix_by_ratio(b, position, transposed=transposed)
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
    kept = _attributes(b)
    matrix = op.Resize(identity, *arguments, **kept)
    return matrix if b.x.dtype in (None, ir.DataType.FLOAT) else op.CastLike(matrix, b.x)


def _matrix_by_ratio(b: Backward, position: int, *, transposed: bool) -> ir.Value:
    """The same where the scale may be that of the other axis: each row is resized beside it."""
    op, axes = b.op, _axes(b)
    sizes = b.input(3)
    size, other = (b.size(b.x, axes[at]) for at in (position, 1 - position))
    identity = op.EyeLike(b.zeros(b.concat([size, size]), ir.DataType.FLOAT))
    rows = op.Unsqueeze(identity, [0, 2])
    images = op.Expand(rows, b.concat([np.ones(1, np.int64), size, other, size]))
    wanted = op.Gather(sizes, np.array([1 - position, position]), axis=0)
    policy = b.node.attributes.get_string("keep_aspect_ratio_policy")
    resized = op.Resize(
        images, None, None, wanted, axes=[2, 3], keep_aspect_ratio_policy=policy, **_attributes(b)
    )
    matrix = op.Squeeze(op.Slice(resized, [0], [1], [2]), [0, 2])
    matrix = matrix if transposed else op.Transpose(matrix, perm=[1, 0])
    return matrix if b.x.dtype in (None, ir.DataType.FLOAT) else op.CastLike(matrix, b.x)


def _attributes(b: Backward) -> dict[str, Any]:
    """Those that say how an axis is resampled."""
    return {
        name: attribute.value
        for name, attribute in b.node.attributes.items()
        if name not in ("axes", "keep_aspect_ratio_policy", "extrapolation_value")
    }


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
