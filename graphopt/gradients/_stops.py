"""Nodes through which no gradient flows: marked ones, and what PyTorch's exporter calls detach.

ONNX's converter drops the metadata of nodes and keeps what documents them, so marks travel there.
"""

import re
from collections.abc import MutableSequence

import onnx
import onnx_ir as ir

from graphopt.graphs import proto_nodes, proto_subgraphs
from graphopt.marks import STOP_GRADIENT

FX_NODE = "pkg.torch.onnx.fx_node"
"""Metadata of a node: the operation of the PyTorch program of which it is made."""
DETACH = re.compile(r"target=torch\.ops\.aten\.detach_?\b")
_NOTE = f"{STOP_GRADIENT}: "


def note_stops(proto: onnx.ModelProto) -> None:
    """Let an Identity stand behind each output of the nodes that stop gradients, with a note.

    Args:
        proto: A forward model, changed in place.
    """
    names = _Names(proto)
    for body in _outermost(proto):
        _note(body.node, names)


def mark_stops(graph: ir.Graph) -> None:
    """Turn the notes into marks."""
    for node in graph.all_nodes():
        if node.doc_string and node.doc_string.startswith(_NOTE):
            node.metadata_props[STOP_GRADIENT] = node.doc_string.removeprefix(_NOTE)
            node.doc_string = None


class _Names:
    """Names that a model does not use."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        nodes = (node for body in _outermost(proto) for node in proto_nodes(body.node))
        self._used = {name for node in nodes for name in node.output}
        self._used.update(value.name for value in (*proto.graph.input, *proto.graph.initializer))

    def fresh(self, name: str) -> str:
        number = 0
        while (fresh := f"{name}/attached{number or ''}") in self._used:
            number += 1
        self._used.add(fresh)
        return fresh


def _outermost(proto: onnx.ModelProto) -> tuple[onnx.GraphProto | onnx.FunctionProto, ...]:
    return (proto.graph, *proto.functions)


def _note(nodes: MutableSequence[onnx.NodeProto], names: _Names) -> None:
    noted = []
    for node in nodes:
        for inner in proto_subgraphs(node):
            _note(inner.node, names)
        noted.append(node)
        reason = _reason(node)
        if reason is None:
            continue
        if node.op_type == "Identity" and not node.domain:
            node.doc_string = _NOTE + reason
            continue
        for index, output in enumerate(node.output):
            if output:
                node.output[index] = names.fresh(output)
                stop = onnx.helper.make_node("Identity", [node.output[index]], [output])
                stop.doc_string = _NOTE + reason
                noted.append(stop)
    if len(noted) > len(nodes):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in noted]
        del nodes[:]
        nodes.extend(copies)


def _reason(node: onnx.NodeProto) -> str | None:
    """Why no gradient flows through a node, if none does."""
    metadata: dict[str, str] = {entry.key: entry.value for entry in node.metadata_props}
    if STOP_GRADIENT in metadata:
        return metadata[STOP_GRADIENT]
    return "detach" if DETACH.search(metadata.get(FX_NODE, "")) else None
