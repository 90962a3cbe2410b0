"""One scope for the names of a graph and of those in its nodes, so that nodes can move freely."""

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.graphs import subgraphs


def join_scopes(graph: ir.Graph) -> None:
    """Let all names be different, and all initializers be those of the outermost graph.

    Two branches may use one name for different values. Each output of a graph in a node is computed
    in it by a node of its own.
    """
    if not any(any(subgraphs(node)) for node in graph):
        return
    _rename(graph, {str(value.name) for value in (*graph.inputs, *graph.initializers.values())})
    op = GraphBuilder(graph)
    for inner in list(graph.subgraphs()):
        if inner is not graph:
            with op.inside(inner):
                _hand_out(op, graph, inner)
                _own_outputs(op, inner)


def _rename(graph: ir.Graph, used: set[str]) -> None:
    for node in graph:
        _make_unique([value for value in node.outputs if value.name], used)
    for node in graph:
        for inner in subgraphs(node):
            _make_unique([*inner.inputs, *inner.initializers.values()], used)
            _rename(inner, used)


def _make_unique(values: list[ir.Value], used: set[str]) -> None:
    for value in values:
        name = name_before = str(value.name)
        number = 0
        while name in used:
            number += 1
            name = f"{name_before}_{number}"
        if name != name_before:
            value.name = name
        used.add(name)


def _hand_out(op: GraphBuilder, graph: ir.Graph, inner: ir.Graph) -> None:
    """Move the initializers of a graph in a node out of it."""
    for name, value in list(inner.initializers.items()):
        if value.is_graph_input():
            continue
        moved = ir.Value(
            name=name, type=value.type, shape=value.shape, const_value=value.const_value
        )
        for index, output in enumerate(inner.outputs):
            if output is value:
                inner.outputs[index] = _copied(op, value)
        ir.convenience.replace_all_uses_with(value, moved)
        del inner.initializers[name]
        graph.register_initializer(moved)


def _own_outputs(op: GraphBuilder, inner: ir.Graph) -> None:
    outputs: list[ir.Value] = []
    for value in inner.outputs:
        node = value.producer()
        if (node is None or node.graph is not inner or value in outputs) and value.name:
            outputs.append(_copied(op, value))
        else:
            outputs.append(value)
    inner.outputs[:] = outputs


def _copied(op: GraphBuilder, value: ir.Value) -> ir.Value:
    copy = op.Identity(value)
    copy.type, copy.shape = value.type, value.shape
    return copy
