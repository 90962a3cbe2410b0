"""What a node reads and writes."""

from collections.abc import Iterator

import onnx

from graphopt._subgraphs import subgraphs


def first_output(node: onnx.NodeProto) -> str:
    """The first output that has a name; "" if none has."""
    return next(filter(None, node.output), "")


def operands(node: onnx.NodeProto) -> Iterator[str]:
    """What a node and all nodes of its subgraphs read, one after another."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from operands(inner)


def reads(node: onnx.NodeProto) -> set[str]:
    """The values of the graph that a node reads, its subgraphs included."""
    return {name for name in node.input if name} | captured(node)


def captured(node: onnx.NodeProto) -> set[str]:
    """What the subgraphs of a node read of the graph around them."""
    names: set[str] = set()
    for graph in subgraphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own.update(name for inner in graph.node for name in inner.output)
        read = {name for inner in graph.node for name in reads(inner)}
        names |= (read | {value.name for value in graph.output}) - own
    return names
