"""What a node reads and writes."""

from collections.abc import Iterator

import onnx

from graphopt._subgraphs import subgraphs


def first_output(node: onnx.NodeProto) -> str:
    """The first output that has a name; "" if none has."""
    return next(filter(None, node.output), "")


def operands(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, that which its subgraphs take from outside included."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from operands(inner)
