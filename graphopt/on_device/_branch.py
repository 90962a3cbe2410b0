"""Nodes that run in some steps only."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder


def only_if(op: GraphBuilder, condition: ir.Value, flags: Sequence[ir.Value]) -> ir.Value:
    """Run only where the condition holds what nothing but these flags needs.

    Args:
        op: Appends to the graph.
        condition: A bool [1].
        flags: Values of the graph that nothing reads yet, bool [1].

    Returns:
        A bool [1] that is there once it has run, or is not to run.
    """
    graph = op.graph
    ran = op.Concat(*flags, axis=0)
    wanted = {ran.producer()}
    for node in reversed(graph):
        readers = {user for value in node.outputs for user, _ in value.uses()}
        reported = any(value.is_graph_output() for value in node.outputs)
        if readers and not reported and readers <= wanted:
            wanted.add(node)
    moved = [node for node in graph if node in wanted]
    graph.remove(moved)
    then = ir.Graph([], [ran], nodes=moved, name="then")
    nothing = ir.node("Constant", [], {"value": ir.tensor(np.zeros(len(flags), np.bool_))})
    nothing.outputs[0].name = op.fresh_name("not_run")
    otherwise = ir.Graph([], list(nothing.outputs), nodes=[nothing], name="otherwise")
    for branch in (then, otherwise):
        branch.outputs[0].dtype, branch.outputs[0].shape = ir.DataType.BOOL, ir.Shape([len(flags)])
    (done,) = op.node("If", [condition], then_branch=then, else_branch=otherwise)
    done.dtype, done.shape = ir.DataType.BOOL, ir.Shape([len(flags)])
    return done
