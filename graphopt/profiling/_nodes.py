"""What a node reads, writes and contains."""

from collections.abc import Iterator

import onnx


def first_output(node: onnx.NodeProto) -> str:
    """The first output that has a name; "" if none has."""
    return next(filter(None, node.output), "")


def operands(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, that which its subgraphs take from outside included."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from operands(inner)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of a loop, or the branches of a condition."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
