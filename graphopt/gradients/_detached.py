"""Detached tensors of which an optimizing exporter leaves no node.

PyTorch's exporter notes at each node the operation that it computes, as text:
``%mul : ... = call_function[target=torch.ops.aten.mul.Tensor](args = (%x, %detach), ...)``. Where
the node of ``%detach`` is gone, this text alone tells that a gradient must not flow.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import onnx
import onnx_ir as ir

from graphopt.forward import to_ir
from graphopt.gradients._stops import DETACH, FX_NODE
from graphopt.graphs import operands
from graphopt.operators.path import depending
from graphopt.operators.rewriting import describe

_CALL = re.compile(r"%(\w+) : .*?= call_function\[(.*)", re.DOTALL)
_ARGUMENT = re.compile(r"%(\w+)")
_DETACHED = re.compile(r"detach_?(_\d+)?")


def lost_detach(proto: onnx.ModelProto, trained: Collection[str], given: Mapping[str, str]) -> str:
    """A node that reads a detached tensor through which a gradient would flow; empty if none does.

    Args:
        proto: The forward model.
        trained: The names of the trained parameters.
        given: What the notes call inputs and initializers, and how the model calls them.
    """
    notes = (entry for node in proto.graph.node for entry in node.metadata_props)
    if not any("%detach" in entry.value for entry in notes if entry.key == FX_NODE):
        return ""
    graph = to_ir(proto).graph
    constants = {str(name) for name in graph.initializers if name not in trained}
    names = {name: placeholder for placeholder, name in given.items()}
    depends = depending(graph, (v for v in graph.initializers.values() if v.name in trained))
    kept = {*given, *constants}
    readers: defaultdict[str, list[ir.Node]] = defaultdict(list)
    for node in graph:
        if call := _CALL.search(node.metadata_props.get(FX_NODE, "")):
            names.update((str(value.name), call[1]) for value in node.outputs)
            readers[call[2]].append(node)
            if DETACH.search(call[2]):
                kept.add(call[1])
    for text, nodes in readers.items():
        arguments = set(_ARGUMENT.findall(text))
        detached = {name for name in arguments - kept if _DETACHED.fullmatch(name)}
        candidates = _candidates(nodes, arguments - detached, len(detached), names)
        if detached and any(value in depends for value in candidates):
            return describe(nodes[0])
    return ""


def _candidates(
    nodes: Sequence[ir.Node], others: Collection[str], count: int, names: Mapping[str, str]
) -> set[ir.Value]:
    """What may be the detached tensors among what the nodes of an operation read.

    They are what it does not call by another name, if everything that it names is there. Otherwise
    each may be one; a tensor may also be read both as it is and detached.
    """
    inside = {value for node in nodes for value in node.outputs}
    read = {value for node in nodes for value in operands(node)} - inside
    called = {value: {str(value.name), names.get(str(value.name))} for value in read}
    unnamed = {value for value in read if called[value].isdisjoint(others)}
    found = {name for value in read for name in called[value]}
    tensors = [value for value in unnamed if value.producer() or value.is_graph_input()]
    return unnamed if found.issuperset(others) and len(tensors) >= count else read
