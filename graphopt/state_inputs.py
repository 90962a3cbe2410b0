"""Inputs of a graph that hold a state of it, the same wherever they are read."""

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.states import State

_OURS = "graphopt.state"


def state_of(graph: ir.Graph, state: State) -> ir.Value | None:
    """The input of a graph that holds a state of it, if there is one."""
    for value in graph.inputs:
        if value.name == state.name and _OURS in value.meta:
            return value
    return None


def input_of_state(op: GraphBuilder, state: State) -> ir.Value:
    """The same, which is made where there is none."""
    value = state_of(op.graph, state)
    if value is None:
        value = op.input(state.name, state.dtype, [])
        value.meta[_OURS] = True
    return value
