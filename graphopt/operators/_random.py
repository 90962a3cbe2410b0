"""Random numbers in branches and loops: the backward pass reads them, and draws none of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.graphs import subgraphs
from graphopt.operators.record import of
from graphopt.operators.rewriting import describe


@dataclass(frozen=True)
class Drawn:
    """Random numbers that a node of a graph draws.

    Attributes:
        at: The place of the node in the graph.
        output: Which of its outputs they are.
        value: That output.
    """

    at: int
    output: int
    value: ir.Value


def drawn_in(graph: ir.Graph, around: ir.Node) -> list[Drawn]:
    """The random numbers that the nodes of a graph draw.

    Args:
        graph: A graph in a node.
        around: The node.

    Raises:
        ValueError: A node of the graph has graphs in it that draw some.
    """
    found = []
    for at, node in enumerate(graph):
        if of(node).is_random:
            output = 1 if node.op_type == "Dropout" else 0
            found.append(Drawn(at, output, node.outputs[output]))
        for inner in subgraphs(node):
            if random := next((n for n in inner.all_nodes() if of(n).is_random), None):
                raise ValueError(
                    f"{describe(random)}: it draws random numbers in {describe(node)}, which is in "
                    f"{describe(around)}, so that the gradients cannot read them; take it out of "
                    "the inner one, or leave the parameters before it out of the optimizer"
                )
    return found


def use_drawn(
    op: GraphBuilder, copy: ir.Graph, drawn: Sequence[Drawn], values: Sequence[ir.Value]
) -> None:
    """Let a copy of a graph read random numbers, instead of drawing them again."""
    nodes = list(copy)
    for one, value in zip(drawn, values, strict=True):
        node = nodes[one.at]
        if node.op_type == "Dropout":
            x, mask, y = node.inputs[0], node.outputs[1], node.outputs[0]
            kept = op.Where(value, x, 0.0)
            ratio = node.inputs[1] if len(node.inputs) > 1 else None
            scaled = op.Mul(kept, 2.0)
            if ratio is not None:
                rest = op.Sub(1.0, op.Cast(ratio, to=y.dtype or ir.DataType.FLOAT))
                rest.shape = ir.Shape([])
                scaled = op.Div(kept, rest)
            for new in (kept, scaled):
                new.type, new.shape = y.type, y.shape
            ir.convenience.replace_all_uses_with(
                [y, mask], [scaled, value], replace_graph_outputs=True
            )
        else:
            old = node.outputs[one.output]
            ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        copy.remove(node, safe=False)
    if drawn:
        copy.sort()
