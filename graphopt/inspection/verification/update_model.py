"""Cuts the update out of a training graph: a model whose inputs are gradients and the old state."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx_ir import serde

from graphopt.graphs import captured, subgraphs
from graphopt.in_place import ACCUMULATOR
from graphopt.update.gate import only_waits

_ANYTHING = "graphopt/anything"


def update_model(
    model: ir.Model, fed: Mapping[str, ir.Value], wanted: Iterable[str]
) -> onnx.ModelProto:
    """The nodes of a model that compute some values from others, as ONNX Runtime takes them.

    The nodes by which the update waits for gradients and outputs may wait for anything.
    The branch of an If that only writes is part of the graph here.

    Args:
        model: The model.
        fed: What is fed, such as gradients, each with a value of its type.
        wanted: The names of the values that become outputs.

    Raises:
        ValueError: The values need something else that is fed.
    """
    nodes = list(_nodes(model.graph))
    made = {value.name: value for node in nodes for value in node.outputs}
    needed: dict[ir.Node, set[ir.Value]] = {}
    waiting = [made[name] for name in wanted if name in made and name not in fed]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in needed:
            reads = captured(node).keys() | {value for value in node.inputs if value is not None}
            needed[node] = {value for value in reads if value.name not in fed}
            waiting += () if only_waits(node) else needed[node]
    read = {v for n, reads in needed.items() if not only_waits(n) for v in reads}
    stored = {value: value.const_value for value in read if value.is_initializer()}
    missing = sorted(str(v.name) for v in read - stored.keys() if v.producer() not in needed)
    if missing:
        raise ValueError(
            f"the update cannot be run by itself: it also reads {', '.join(map(repr, missing[:5]))}"
        )
    anything = ir.tensor(np.zeros(1, np.float32), name=_ANYTHING)
    tensors = [anything, *(tensor for tensor in stored.values() if tensor is not None)]
    cut = onnx.ModelProto(ir_version=model.ir_version)
    cut.opset_import.extend(helper.make_opsetid(*opset) for opset in model.opset_imports.items())
    cut.functions.extend(map(serde.serialize_function, model.functions.values()))
    cut.graph.name = "update"
    for node in (node for node in nodes if node in needed):
        cut.graph.node.append(serde.serialize_node(node))
        if only_waits(node):
            cut.graph.node[-1].input[:] = [_ANYTHING] * len(node.inputs)
    cut.graph.initializer.extend(map(serde.serialize_tensor, tensors))
    for name, value in fed.items():
        cut.graph.input.append(serde.serialize_value(value))
        cut.graph.input[-1].name = name
    cut.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(wanted))
    return cut


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of a graph, and those of branches that write over its inputs."""
    for node in graph:
        yield node
        if node.op_type == "If" and not node.domain:
            for branch in subgraphs(node):
                if any(inner.op_type == ACCUMULATOR for inner in branch):
                    yield from _nodes(branch)
