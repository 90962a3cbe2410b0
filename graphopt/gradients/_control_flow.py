"""Branches and loops of which it is known before the graph runs what they do."""

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._constants import constant_of, propagate_constants
from graphopt.graphs import subgraphs
from graphopt.operators.rewriting import take_place

MOST_NODES = 10_000
"""What the rounds of a loop may become; one of more stays a loop, as does its gradient."""


def write_out(op: GraphBuilder, wanted: Collection[ir.Node], trained: Collection[str]) -> bool:
    """Replace branches and loops by the nodes that run, where that is known.

    Args:
        op: A builder of the graph, in which constants are known as far as they can be.
        wanted: The nodes that are looked at.
        trained: Initializers that are no constants.

    Returns:
        Whether there were any.
    """
    return _write_out(op, op.graph, wanted, trained)


def _write_out(
    op: GraphBuilder, graph: ir.Graph, wanted: Collection[ir.Node], trained: Collection[str]
) -> bool:
    changed = False
    for node in list(graph):
        if node not in wanted:
            continue
        for inner in subgraphs(node):
            changed |= _write_out(op, inner, wanted, trained)
        makers = {"If": _take_branch, "Loop": _unroll_loop, "Scan": _unroll_scan}
        maker = makers.get(node.op_type)
        if maker is not None and not node.domain:
            with op.inside(graph), op.named(node.name or str(node.outputs[0].name)):
                changed |= maker(op, node, trained)
    return changed


def _take_branch(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> bool:
    del op
    condition = constant_of(node.inputs[0], trained)
    if condition is None or condition.size != 1:
        return False
    branch = node.attributes["then_branch" if condition.item() else "else_branch"].as_graph()
    outputs = list(branch.outputs)
    branch.outputs.clear()
    _move(branch, node)
    take_place(node, outputs)
    return True


def _unroll_loop(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> bool:
    """One copy of the body a round, as long as it is known that there is another one."""
    body = node.attributes["body"].as_graph()
    most, runs = (
        np.array(default) if value is None else constant_of(value, trained)
        for value, default in zip([*node.inputs, None, None][:2], (2**62, True), strict=True)
    )
    states: Sequence[ir.Value | None] = node.inputs[2:]
    if most is None or runs is None or None in states:
        return False
    lists: list[list[ir.Value]] = [[] for _ in body.outputs[1 + len(states) :]]
    rounds: list[ir.Node] = []
    times = 0
    while runs is not None and runs.item() and times < most.item():
        copy = op.copy(body, f"{node.name or node.outputs[0].name}/{times}")
        given = [op.constant(np.array(times)), op.constant(np.array(True)), *states]
        outputs = _enter(copy, given)
        rounds += _move(copy, node)
        propagate_constants(rounds[-len(body) :], op.opset, trained)
        runs, states = constant_of(outputs[0], trained), outputs[1 : 1 + len(states)]
        for listed, value in zip(lists, outputs[1 + len(states) :], strict=True):
            listed.append(value)
        times += 1
        if len(rounds) > MOST_NODES:
            runs = None
    if runs is None or (lists and not times):
        _remove(rounds)
        return False
    stacked = [_stacked(op, listed, 0) for listed in lists]
    take_place(node, [_own(op, value, node) for value in [*states, *stacked]])
    return True


def _unroll_scan(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> bool:
    """One copy of the body for each row."""
    del trained
    body = node.attributes["body"].as_graph()
    count = node.attributes.get_int("num_scan_inputs", 0)
    states: Sequence[ir.Value | None] = node.inputs[:-count]
    scanned = node.inputs[-count:]
    axes = list(node.attributes.get_ints("scan_input_axes", ()) or [0] * count)
    ways = list(node.attributes.get_ints("scan_input_directions", ()) or [0] * count)
    shape = None if scanned[0] is None else scanned[0].shape
    times = None if shape is None else shape[axes[0]]
    if not isinstance(times, int) or not times or times * len(body) > MOST_NODES:
        return False
    rows = []
    for value, axis, way in zip(scanned, axes, ways, strict=True):
        parts = op.node("Split", [value, np.ones(times, np.int64)], outputs=times, axis=axis)
        of_rounds = [op.Squeeze(part, [axis]) for part in parts]
        rows.append(of_rounds[::-1] if way else of_rounds)
    lists: list[list[ir.Value]] = [[] for _ in body.outputs[len(states) :]]
    for at in range(times):
        copy = op.copy(body, f"{node.name or node.outputs[0].name}/{at}")
        outputs = _enter(copy, [*states, *(row[at] for row in rows)])
        _move(copy, node)
        states = outputs[: len(states)]
        for listed, value in zip(lists, outputs[len(states) :], strict=True):
            listed.append(value)
    list_axes = node.attributes.get_ints("scan_output_axes", ()) or [0] * len(lists)
    list_ways = node.attributes.get_ints("scan_output_directions", ()) or [0] * len(lists)
    stacked = [
        _stacked(op, listed[::-1] if way else listed, axis)
        for listed, axis, way in zip(lists, list_axes, list_ways, strict=True)
    ]
    take_place(node, [_own(op, value, node) for value in [*states, *stacked]])
    return True


def _enter(copy: ir.Graph, given: Sequence[ir.Value | None]) -> list[ir.Value]:
    """Let a body read these values; what it gives, each computed in it or read."""
    outputs = list(copy.outputs)
    for before, value in zip(copy.inputs, given, strict=True):
        assert value is not None
        ir.convenience.replace_all_uses_with(before, value)
        outputs = [value if output is before else output for output in outputs]
    copy.outputs.clear()
    return outputs


def _stacked(op: GraphBuilder, values: Sequence[ir.Value], axis: int) -> ir.Value:
    return op.Concat(*(op.Unsqueeze(value, [axis]) for value in values), axis=axis)


def _own(op: GraphBuilder, value: ir.Value | None, node: ir.Node) -> ir.Value:
    """A value, or a copy where it is not one of a node of the graph that nothing else names."""
    assert value is not None
    producer = value.producer()
    if producer is None or producer.graph is not node.graph or value.is_graph_output():
        return op.Identity(value)
    return value


def _move(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    """Move the nodes of a graph before a node; returns them."""
    nodes = list(graph)
    graph.remove(nodes)
    assert node.graph is not None
    node.graph.insert_before(node, nodes)
    return nodes


def _remove(nodes: Sequence[ir.Node]) -> None:
    for node in reversed(nodes):
        assert node.graph is not None
        node.graph.remove(node, safe=True)
