"""The number of steps as two float32 numbers, exact up to 2**47.

ONNX Runtime's training API writes float32 only, which alone counts to 2**24.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.builder import GraphBuilder

_BASE = 2**24


def encode(step: int) -> npt.NDArray[np.float32]:
    """``step`` as float32 [2]: what remains of it by 2**24, and how often that goes into it."""
    return np.array([step % _BASE, step // _BASE], np.float32)


def decode(numbers: npt.NDArray[np.float32]) -> int:
    """The step that two numbers stand for."""
    low, high = numbers.tolist()
    return int(high) * _BASE + int(low)


def decoded(op: GraphBuilder, numbers: ir.Value) -> ir.Value:
    """The int64 scalar that two numbers in a graph stand for."""
    parts = op.Cast(numbers, to=ir.DataType.INT64)
    return op.ReduceSum(op.Mul(parts, np.array([1, _BASE])), [0], keepdims=0)


def encoded(op: GraphBuilder, step: ir.Value) -> ir.Value:
    """An int64 scalar of a graph as two numbers."""
    base = np.array([_BASE, np.iinfo(np.int64).max])
    whole = op.Div(step, np.array([1, _BASE]))
    return op.Cast(op.Mod(whole, base), to=ir.DataType.FLOAT)
