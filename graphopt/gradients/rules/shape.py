"""Operators that move elements, or let them be."""

import onnx_ir as ir

from graphopt.gradients.backward import Backward, rule


@rule("Identity")
def identity(b: Backward) -> ir.Value:
    return b.dy


@rule("Cast", "CastLike")
def cast(b: Backward) -> ir.Value:
    return b.dy if b.x.dtype == b.y.dtype else b.op.CastLike(b.dy, b.x)


@rule("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def reshape(b: Backward) -> ir.Value:
    return b.reshape_like(b.dy, b.x)


@rule("Transpose")
def transpose(b: Backward) -> ir.Value:
    rank = b.rank(b.x)
    perm = list(b.node.attributes.get_ints("perm", range(rank - 1, -1, -1)))
    return b.op.Transpose(b.dy, perm=[perm.index(axis) for axis in range(rank)])
