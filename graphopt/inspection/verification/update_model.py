"""Cuts the update out of a training graph: a model whose inputs are gradients and the old state."""

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphopt._nodes import reads
from graphopt._subgraphs import subgraphs
from graphopt.in_place import ACCUMULATOR

_ANYTHING = "graphopt/anything"


def update_model(
    model: onnx.ModelProto,
    fed: Mapping[str, onnx.TypeProto],
    wanted: Iterable[str],
) -> onnx.ModelProto:
    """The nodes of a model that compute some values from others.

    The update waits for gradients and outputs by a chain of Size nodes, which may measure anything.
    The branch of an If that only writes is part of the graph here.

    Args:
        model: The model.
        fed: What is fed, such as gradients, with its type.
        wanted: The names of the values that become outputs.

    Raises:
        ValueError: The values need something else that is fed.
    """
    wanted = list(dict.fromkeys(wanted))
    nodes = list(_nodes(model.graph))
    made_by = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needed = _needed(nodes, made_by, wanted, fed)
    constants = _initializers(model.graph, nodes)
    cut = onnx.ModelProto(ir_version=model.ir_version)
    cut.opset_import.extend(model.opset_import)
    cut.functions.extend(model.functions)
    cut.graph.name = "update"
    read = set()
    for index in sorted(needed):
        node = onnx.NodeProto()
        node.CopyFrom(nodes[index])
        if node.op_type == "Size":
            node.input[0] = _ANYTHING
        cut.graph.node.append(node)
        read.update(reads(node))
    known = {name for index in needed for name in nodes[index].output} | {_ANYTHING}
    missing = sorted(read - known - set(fed) - set(constants) - {""})
    if missing:
        raise ValueError(
            f"the update cannot be run by itself: it also reads {', '.join(map(repr, missing[:5]))}"
        )
    anything = numpy_helper.from_array(np.zeros(1, np.float32), _ANYTHING)
    cut.graph.initializer.append(anything)
    cut.graph.initializer.extend(tensor for name, tensor in constants.items() if name in read)
    cut.graph.input.extend(helper.make_value_info(name, kind) for name, kind in fed.items())
    unknown = onnx.TypeProto()
    cut.graph.output.extend(helper.make_value_info(name, unknown) for name in wanted)
    return cut


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, and those of branches that write over its inputs."""
    for node in graph.node:
        yield node
        if node.op_type == "If" and node.domain in ("", "ai.onnx"):
            for branch in subgraphs(node):
                if any(inner.op_type == ACCUMULATOR for inner in branch.node):
                    yield from _nodes(branch)


def _initializers(
    graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]
) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in nodes:
        if node.op_type == "If":
            for branch in subgraphs(node):
                found.update((tensor.name, tensor) for tensor in branch.initializer)
    return found


def _needed(
    nodes: list[onnx.NodeProto],
    made_by: Mapping[str, int],
    wanted: Iterable[str],
    fed: Collection[str],
) -> set[int]:
    needed: set[int] = set()
    waiting = [name for name in wanted if name not in fed]
    while waiting:
        index = made_by.get(waiting.pop())
        if index is None or index in needed:
            continue
        needed.add(index)
        if nodes[index].op_type != "Size":
            waiting += [name for name in reads(nodes[index]) if name not in fed]
    return needed
