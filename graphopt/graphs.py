"""What nodes read, also in the graphs inside them, and the functions that they call."""

from collections import Counter
from collections.abc import Iterable, Iterator, MutableSequence

import onnx
import onnx_ir as ir
from onnx import inliner


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The bodies of a loop, or the branches of a condition."""
    for attribute in node.attributes.data.values():
        kind = attribute.type
        if kind == ir.AttributeType.GRAPH and not attribute.is_ref():
            yield attribute.as_graph()
        elif kind == ir.AttributeType.GRAPHS and not attribute.is_ref():
            yield from attribute.as_graphs()


def all_nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """The nodes of a graph, each followed by those of the graphs in it.

    As onnx-ir's ``all_nodes``, in a third of its time.
    """
    for node in graph:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def proto_subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The same of a node in a file."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def proto_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph in a file, and all graphs in its nodes."""
    yield graph
    for node in graph.node:
        for inner in proto_subgraphs(node):
            yield from proto_graphs(inner)


def proto_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes in a file, and all nodes in their graphs."""
    for node in nodes:
        yield node
        for graph in proto_subgraphs(node):
            yield from proto_nodes(graph.node)


def without_functions(model: onnx.ModelProto, *, convert_version: bool = False) -> onnx.ModelProto:
    """A model in a file with its functions written out.

    ONNX's inliner forgets what an attribute of a function is by default, and an operator inside
    then takes its own default, so calls get it first.

    Args:
        model: The model, which is left as it is.
        convert_version: Bring functions of another opset to that of the model.
    """
    defaults = {
        (one.domain, one.name, one.overload): one.attribute_proto
        for one in model.functions
        if one.attribute_proto
    }
    if defaults:
        own = onnx.ModelProto()
        own.CopyFrom(model)
        model = own
    calls = (*model.graph.node, *(node for one in model.functions for node in one.node))
    for node in proto_nodes(calls if defaults else ()):
        given = {attribute.name for attribute in node.attribute}
        node.attribute.extend(
            default
            for default in defaults.get((node.domain, node.op_type, node.overload), ())
            if default.name not in given
        )
    return inliner.inline_local_functions(model, convert_version=convert_version)


TO_INITIALIZERS = frozenset(("graph", "training_info", "initialization", "initializer"))
"""The fields of a model in a file on the way to its `proto_initializers`."""


def proto_initializers(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The initializers of a model in a file, and what it has for the first training step."""
    for graph in (model.graph, *(info.initialization for info in model.training_info)):
        yield from graph.initializer


def operands(node: ir.Node) -> Iterator[ir.Value]:
    """What a node and all nodes of its subgraphs read, one after another."""
    for value in node.inputs:
        if value is not None:
            yield value
    for graph in subgraphs(node):
        for inner in graph:
            yield from operands(inner)


def captured(node: ir.Node) -> dict[ir.Value, None]:
    """What the subgraphs of a node read of the graphs around them, in the order of reading."""
    graphs = list(subgraphs(node))
    if not graphs:
        return {}
    inside = {inner for graph in graphs for inner in (graph, *graph.subgraphs())}
    read = (value for graph in graphs for inner in graph for value in operands(inner))
    return dict.fromkeys(value for value in read if value.graph not in inside)


def replace_captured(node: ir.Node, value: ir.Value, by: ir.Value) -> None:
    """Let the subgraphs of a node read another value in place of one of the graphs around them."""
    for graph in subgraphs(node):
        for inner in all_nodes(graph):
            for index, read in enumerate(inner.inputs):
                if read is value:
                    inner.replace_input_with(index, by)
        for inner_graph in (graph, *graph.subgraphs()):
            inner_graph.outputs[:] = [by if v is value else v for v in inner_graph.outputs]


def needed_for(values: Iterable[ir.Value], graph: ir.Graph) -> set[ir.Value]:
    """These values of a sorted graph, and all that they are computed from."""
    needed = set(values)
    for node in reversed(graph):
        if not needed.isdisjoint(node.outputs):
            needed.update(node.outputs, operands(node))
    return needed


def by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """The inputs, initializers and computed values of a graph, but not of graphs in its nodes."""
    values = {str(value.name): value for value in graph.inputs} | dict(graph.initializers)
    return values | {str(value.name): value for node in graph for value in node.outputs}


def named_once(graph: ir.Graph) -> set[str]:
    """The names that one value has, in a graph and all graphs in its nodes."""
    graphs = (graph, *graph.subgraphs())
    counted = Counter(
        value.name
        for inner in graphs
        for values in (
            {*inner.inputs, *inner.initializers.values()},
            (value for node in inner for value in node.outputs),
        )
        for value in values
    )
    return {name for name, count in counted.items() if name and count == 1}


def put_last(values: MutableSequence[ir.Value], names: Iterable[str]) -> None:
    """Order values so that those with these names come last, in the order of the names."""
    place = {name: index for index, name in enumerate(names)}
    values[:] = sorted(values, key=lambda value: place.get(str(value.name), -1))


def functions(model: ir.Model) -> dict[tuple[str, str], ir.Function]:
    """The functions of a model by the domain and the operator of the nodes that call them."""
    return {
        ("" if domain == "ai.onnx" else domain, name): function
        for (domain, name, _), function in model.functions.items()
    }
