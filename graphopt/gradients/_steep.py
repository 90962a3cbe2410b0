"""Where a slope may be infinite, though the loss is not.

The slope of a root is infinite at 0, and 0 times infinity is not 0. So where a gradient may be
infinite, a rule that lets part of it through has to choose it; a product with 0 and 1, which is
faster, does elsewhere. And where a slope may be infinite, though a later node leaves the result
aside and selects something else, as in `Where(x > 0, Log(x), 0)`, a gradient of 0 stays 0.
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


def selected_infinities(
    graph: ir.Graph, nodes: Sequence[ir.Node], values: Collection[ir.Value]
) -> dict[ir.Node, set[ir.Value]]:
    """Where a gradient of 0 has to stay 0, because something else was selected.

    From a node that selects, back through nodes that leave a gradient 0 where it was, and nowhere
    make it 0 because an operand is infinite: there, 0 times infinity may be any number.

    Args:
        graph: Sorted, and without gradients so far.
        nodes: Its nodes between the parameters and the loss, in their order.
        values: Theirs that depend on a parameter.

    Returns:
        For nodes with an infinite slope, or one that is not a number, their inputs and outputs at
        which it is.
    """
    if not any(of(node).selects for node in nodes):
        return {}
    steep = {node for node in graph if of(node).steep_inputs(node, values)}
    infinite = _infinite(graph, steep)
    selected: set[ir.Value] = set()
    found: dict[ir.Node, set[ir.Value]] = {}
    for node in reversed(nodes):
        operator = of(node)
        read = [value for value in node.inputs if value is not None and value in values]
        if operator.selects:
            selected.update(read)
            continue
        if selected.isdisjoint(node.outputs):
            continue
        own = {value for value in (*node.inputs, *node.outputs) if value is not None}
        at = own if node in steep else own & infinite
        if at:
            found[node] = at
        stays = operator.is_elementwise and infinite.isdisjoint(node.inputs)
        if stays or operator.moves <= Moves.PART or not operator.flat_at_infinity:
            selected.update(read)
    return found


def _infinite(nodes: Iterable[ir.Node], steep: Collection[ir.Node]) -> set[ir.Value | None]:
    """The values that may be infinite or not a number, until something else is selected."""
    found: set[ir.Value | None] = set()
    for node in nodes:
        if not of(node).selects and (node in steep or not found.isdisjoint(node.inputs)):
            found.update(node.outputs)
    return found
