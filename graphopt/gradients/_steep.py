"""Where a gradient may be infinite, though the loss is not.

The slope of a root is infinite at 0, and 0 times infinity is not 0: there, a rule that lets part of
a gradient through has to choose it. A product with 0 and 1, which is faster, does elsewhere.
"""

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from graphopt.graphs import operands, subgraphs
from graphopt.operators import Moves, of


def steep_values(
    nodes: Sequence[ir.Node], values: Collection[ir.Value], parameters: Iterable[ir.Value]
) -> set[ir.Value]:
    """The values whose gradient may be infinite, or not a number.

    Behind a node where a parameter gets a gradient from each element, as a weight or a bias does,
    it does not matter: an infinite one would have destroyed that parameter.

    Args:
        nodes: Those between the parameters and the loss, in the order of the graph.
        values: Theirs that depend on a parameter.
        parameters: The trained ones.
    """
    moved = set(parameters)
    for node in nodes:
        if of(node).moves <= Moves.COPIES and node.inputs[0] in moved:
            moved.add(node.outputs[0])
    steep: set[ir.Value] = set()
    for node in reversed(nodes):
        operator = of(node)
        if any(subgraphs(node)):  # what is in it is not looked at
            steep.update(value for value in operands(node) if value in values)
            continue
        given = {i: value for i, value in enumerate(node.inputs) if value in values and value}
        is_destroyed = operator.spreads and not moved.isdisjoint(given.values())
        if not steep.isdisjoint(node.outputs) and not is_destroyed:
            steep.update(given.values())
        inputs = operator.steep_inputs(node, values)
        steep.update(value for index, value in given.items() if index in inputs)
    return steep
