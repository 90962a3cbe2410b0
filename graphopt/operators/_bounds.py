"""What is known of the size of values before the graph runs: that they are never near 0."""

import math
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

_DEPTH = 12
_NEAR = 1e-18
"""The inverse of what is larger has a finite square, in float32 too."""
_MAX_ELEMENTS = 4096

_NOT_BELOW_0 = {
    *("Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu", "Sigmoid"),
    *("Size", "Softmax", "Softplus"),
}
_SAME = {
    *("Cast", "CastLike", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze"),
    *("Tile", "Transpose", "Unsqueeze"),
}
_AT_LEAST_ONE_OF = {"ReduceMax", "ReduceMean", "ReduceMin"}


def is_away_from_0(value: ir.Value | None, trained: Collection[ir.Value]) -> bool:
    """Whether no element of a value comes near 0, whatever the graph is fed.

    Args:
        value: A value of the forward graph.
        trained: Those that depend on a parameter.
    """
    known = _constant(value, trained)
    if known is not None:
        return bool((np.abs(known) > _NEAR).all())
    return _least(value, trained, _DEPTH) > _NEAR


def _constant(value: ir.Value | None, trained: Collection[ir.Value]) -> np.ndarray | None:
    if value is None or value in trained:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > _MAX_ELEMENTS:
        return None
    return tensor.numpy().astype(np.float64)


def _least(value: ir.Value | None, trained: Collection[ir.Value], depth: int) -> float:
    """A number that no element is below; minus infinity if there is none that is known."""
    known = _constant(value, trained)
    if known is not None:
        return float(known.min(initial=math.inf))
    node = None if value is None else value.producer()
    if node is None or node.domain or depth == 0:
        return -math.inf

    def least(index: int) -> float:
        given = node.inputs[index] if index < len(node.inputs) else None
        return -math.inf if given is None else _least(given, trained, depth - 1)

    name = node.op_type
    if name in _SAME or name in _AT_LEAST_ONE_OF:
        return least(0)
    if name in _NOT_BELOW_0:
        return 0.0
    if name == "Max":
        return max(least(index) for index in range(len(node.inputs)))
    if name == "Clip":
        highest = least(2) if len(node.inputs) > 2 and node.inputs[2] is not None else math.inf
        return min(max(least(0), least(1)), highest)
    if name in ("Min", "Concat"):
        return min(least(index) for index in range(len(node.inputs)))
    if name == "Where":
        return min(least(1), least(2))
    if name in ("Add", "Sum"):
        return sum(least(index) for index in range(len(node.inputs)))
    if name == "Mul" and node.inputs[0] is node.inputs[1]:
        return 0.0
    if name in ("Mul", "Div"):
        first, second = least(0), least(1)
        if min(first, second) < 0:
            return -math.inf
        return first * second if name == "Mul" else 0.0
    if name == "Sqrt":
        return math.sqrt(max(least(0), 0.0))
    if name == "ReduceSum":
        return least(0) if least(0) >= 0 else -math.inf
    if name == "Pow":
        return _least_power(node, least(0), trained)
    return -math.inf


def _least_power(node: ir.Node, base: float, trained: Collection[ir.Value]) -> float:
    exponent = _constant(node.inputs[1], trained)
    if exponent is None or exponent.size != 1:
        return -math.inf
    e = float(exponent.item())
    if base >= 0:
        return math.pow(base, e) if e > 0 else 0.0
    return 0.0 if e % 2 == 0 else -math.inf
