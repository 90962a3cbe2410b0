"""Loops that collect tensors in a sequence, which become loops that give a list.

A loop cannot carry a gradient from round to round in a sequence, but it can read that of a list.
The tensors must have one shape in all rounds.
"""

from collections.abc import Collection

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.graphs import subgraphs
from graphopt.operators.rewriting import take_place
from graphopt.shapes.values import UNNAMED


def write_lists(op: GraphBuilder, wanted: Collection[ir.Node]) -> bool:
    """Let loops give what they collect as lists, where sequences are only joined behind them.

    Args:
        op: A builder of the graph, in which shapes are known as far as they can be.
        wanted: The nodes that are looked at.

    Returns:
        Whether there were any.
    """
    return _write_lists(op, op.graph, wanted)


def _write_lists(op: GraphBuilder, graph: ir.Graph, wanted: Collection[ir.Node]) -> bool:
    changed = False
    for node in list(graph):
        for inner in subgraphs(node):
            changed |= _write_lists(op, inner, wanted)
        if node.op_type == "Loop" and not node.domain and node in wanted:
            while (state := _collected(node)) is not None:
                with op.inside(graph), op.named(node.name or str(node.outputs[0].name)):
                    node = _with_list(op, node, *state)  # noqa: PLW2901
                changed = True
    return changed


def _collected(node: ir.Node) -> tuple[int, ir.Value] | None:
    """A state that is a sequence to which each round adds a tensor, and that tensor."""
    body = node.attributes["body"].as_graph()
    for at, initial in enumerate(node.inputs[2:]):
        before, after = body.inputs[2 + at], body.outputs[1 + at]
        insert, source = after.producer(), None if initial is None else initial.producer()
        if (
            source is not None
            and source.op_type == "SequenceEmpty"
            and insert is not None
            and insert.op_type == "SequenceInsert"
            and insert.inputs[0] is before
            and len(insert.inputs) == 2
            and not after.uses()
            and len(before.uses()) == 1
            and not node.outputs[at].is_graph_output()
            and (tensor := insert.inputs[1]) is not None
            and all(_joins_alike(use.node, tensor) for use in node.outputs[at].uses())
        ):
            return at, tensor
    return None


def _joins_alike(node: ir.Node, tensor: ir.Value) -> bool:
    """Whether a node joins such tensors, and they have the same shape in all rounds.

    Along other axes than that of a ConcatFromSequence they must.
    """
    if node.op_type != "ConcatFromSequence" or tensor.shape is None:
        return False
    if node.attributes.get_int("new_axis", 0):
        return True
    size = tensor.shape[node.attributes.get_int("axis", 0)]
    name = size if isinstance(size, int) else size.value
    return name is not None and not str(name).startswith(UNNAMED)


def _with_list(op: GraphBuilder, node: ir.Node, at: int, tensor: ir.Value) -> ir.Node:
    """The same loop with a list, which takes the place of the state at ``at``."""
    body, graph = node.attributes["body"].as_graph(), node.graph
    assert graph is not None
    insert = body.outputs[1 + at].producer()
    assert insert is not None
    with op.inside(body):
        given = op.Identity(tensor)
    given.type, given.shape = tensor.type, tensor.shape
    del body.outputs[1 + at]
    body.remove(insert, safe=True)
    del body.inputs[2 + at]
    body.outputs.append(given)
    kept = [value for index, value in enumerate(node.outputs) if index != at]
    inputs = [value for index, value in enumerate(node.inputs) if index != 2 + at]
    body_attribute = node.attributes.pop("body")
    outputs = op.node("Loop", inputs, outputs=len(node.outputs), body=body_attribute.as_graph())
    new = outputs[0].producer()
    assert new is not None
    graph.remove(new)
    graph.insert_before(node, new)
    new.name = node.name
    for old, value in zip(kept, outputs, strict=False):
        value.type, value.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        old.name, value.name = value.name, old.name
    for user in {use.node for use in node.outputs[at].uses()}:
        _join(op, user, outputs[-1], tensor)
    graph.remove(node, safe=True)
    return new


def _join(op: GraphBuilder, node: ir.Node, listed: ir.Value, tensor: ir.Value) -> None:
    """Let a list, [rounds, ...], stand for what joins the sequence."""
    assert tensor.shape is not None
    assert node.graph is not None
    rank = len(tensor.shape)
    is_new = bool(node.attributes.get_int("new_axis", 0))
    axis = node.attributes.get_int("axis", 0)
    axis += (rank + is_new) if axis < 0 else 0
    order = [*range(1, axis + 1), 0, *range(axis + 1, rank + 1)]
    with op.inside(node.graph):
        moved = op.Transpose(listed, perm=order) if axis else op.Identity(listed)
        if not is_new:
            before = op.Shape(moved, start=0, end=axis)
            behind = op.Shape(moved, start=axis + 2)
            moved = op.Reshape(moved, op.Concat(before, [-1], behind, axis=0))
    take_place(node, [moved])
