"""Sums and products of all elements before one."""

import onnx_ir as ir

from graphopt.operators.backward import Backward
from graphopt.operators.record import operator
from graphopt.shapes import elements


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
