"""Roots of sums of powers: norms and standard deviations, whatever nodes they are written in."""

import math

import onnx_ir as ir

from graphopt.operators.backward import Backward

_SAME = {"Abs", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
_DEPTH = 12


def nonzero_root(b: Backward, value: ir.Value | None = None) -> ir.Value:
    """The root that a node computes, or another value that is 0 where it is.

    Where the node computes one of a sum of powers, infinity stands for 0: what is divided by it, or
    by a power of it, is 0 then.
    """
    value = b.y if value is None else value
    if not _is_sum_of_powers(b, b.x):
        return value
    return b.op.Where(b.op.Equal(b.y, 0.0), math.inf, value)


def _is_sum_of_powers(b: Backward, value: ir.Value | None, depth: int = _DEPTH) -> bool:
    """Whether a value is a sum or a mean of powers that are flat at 0, such as squares.

    Where it is 0, all that was raised to a power is 0, and so is the slope of each power. The slope
    of a root of it is infinite there: their product is not a number, whatever comes from behind.
    """
    node = None if value is None else value.producer()
    if node is None or node.domain or depth == 0:
        return False
    first, second = (*node.inputs, None, None)[:2]
    match node.op_type:
        case "ReduceSumSquare":
            return True
        case "Pow":
            if second is None or second in b.trained:
                return False
            exponent = ir.convenience.get_const_tensor(second)
            return exponent is not None and all(e > 1 for e in exponent.numpy().flat)
        case "Mul" if first is second:
            return True
        case "Add" | "Sum" | "Mean":
            return all(_is_sum_of_powers(b, part, depth - 1) for part in node.inputs)
        case "Mul":
            powers = [_is_sum_of_powers(b, factor, depth - 1) for factor in (first, second)]
            return any(powers) and all(
                is_power or factor not in b.trained
                for is_power, factor in zip(powers, (first, second), strict=True)
            )
        case "Div":
            return second not in b.trained and _is_sum_of_powers(b, first, depth - 1)
        case name:
            passes = name in _SAME or name in ("ReduceSum", "ReduceMean")
            return passes and _is_sum_of_powers(b, first, depth - 1)
