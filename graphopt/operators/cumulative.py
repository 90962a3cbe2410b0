"""Sums and products of all elements before one, and sequences in equal steps."""

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.backward import Backward
from graphopt.operators.record import NoGradient, operator
from graphopt.operators.rewriting import describe, replace, rewrite_in_float32
from graphopt.shapes import elements, filling


@operator("CumSum", flops=1, shape=elements.same)
def cum_sum(b: Backward) -> ir.Value:
    """The same from the other end."""
    attributes = b.node.attributes
    return b.op.CumSum(
        b.dy,
        b.input(1),
        exclusive=attributes.get_int("exclusive", 0),
        reverse=1 - attributes.get_int("reverse", 0),
    )


def rewrite_cum_prod(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """Write out products of 1, 2, 4, ... neighbours, until they reach the end of the axis.

    So it runs where the operator is not known, and its gradient is that of products: no division,
    whose result would be wrong where an element is 0.

    Raises:
        ValueError: The axis or its size is not known.
    """
    del trained
    x, operand = node.inputs[:2]
    axis = None if operand is None else ir.convenience.get_const_tensor(operand)
    if x is None or x.shape is None or axis is None:
        raise ValueError(f"{describe(node)}: its axis, or the rank of its input, is not known")
    along, rank = int(axis.numpy().item()), len(x.shape)
    size = x.shape[along]
    if not isinstance(size, int):
        raise ValueError(
            f"{describe(node)}: the size of axis {along} is not known; "
            "declare the model's inputs so that it is"
        )
    one = np.ones((), (x.dtype or ir.DataType.FLOAT).numpy())
    is_reverse = node.attributes.get_int("reverse", 0)

    def moved(value: ir.Value, steps: int) -> ir.Value:
        """The elements that stand so many places before, with ones where there are none."""
        pads = np.zeros((2, rank), np.int64)
        pads[:, along] = (-steps, steps) if is_reverse else (steps, -steps)
        return op.Pad(value, pads.reshape(-1), one)

    with op.named(node.name or str(node.outputs[0].name)):
        y = moved(x, 1) if node.attributes.get_int("exclusive", 0) else x
        for power in range(max(size - 1, 0).bit_length()):
            y = op.Mul(y, moved(y, 2**power))
        if y is x:  # not an Identity: of no elements, ONNX Runtime 1.19 does not load it
            y = op.Mul(x, one)
    replace(op, node, y)


operator("CumProd", rewrite=rewrite_cum_prod, shape=elements.same, flops=1)


@operator(
    "Range",
    rewrite=rewrite_in_float32,
    settings=(0, 1, 2),
    flops=0,
    shape=filling.arithmetic_sequence,
)
def range_(b: Backward) -> Sequence[ir.Value | NoGradient]:
    """With y[i] = start + i delta; the limit only says how many there are."""
    op = b.op
    places = op.Range(np.array(0), op.Squeeze(op.Shape(b.y), [0]), np.array(1))
    of_delta = op.Mul(b.dy, op.CastLike(places, b.dy))
    start, delta = (op.ReduceSum(value, keepdims=0) for value in (b.dy, of_delta))
    return [start, NoGradient.ZERO, delta]
