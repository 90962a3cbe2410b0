"""Cutting what computes gradients into pieces, which are run one after the other.

ONNX Runtime hands over the outputs of a graph when all are there. Of a graph in pieces, the
gradients of one are added up between the ranks while the next is computed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from graphopt.distributed._split import GradientGraph
from graphopt.graphs import proto_nodes, proto_subgraphs
from graphopt.shapes.in_place import infer_shapes


@dataclass(frozen=True)
class Piece:
    """A part of the nodes.

    Attributes:
        model: An ``onnx.ModelProto``; its inputs are those of the whole that it reads, and what
            earlier pieces pass.
        flat: Those of its outputs that are flat gradients.
        reports: Those of its outputs that the whole reports besides.
        passed: Those of its outputs that later pieces read.
    """

    model: onnx.ModelProto
    flat: tuple[str, ...]
    reports: tuple[str, ...]
    passed: tuple[str, ...] = ()


def pieces(half: GradientGraph, count: int) -> list[Piece]:
    """The pieces, with about as many bytes of gradients each, in the order in which they run.

    The backward pass gives the gradients of the last layers first: what is computed from the
    fewest nodes is in the first piece. Each node is in one piece, so nothing is computed twice, and
    what two pieces need stays in memory between them, as it would between two nodes.

    Args:
        half: What is cut.
        count: How many pieces; there are fewer where it has fewer gradients, or where it does not
            say of which type a value is that would pass a cut.
    """
    whole = half.model.graph
    reports = tuple(value.name for value in whole.output if value.name not in half.flat)
    alone = [Piece(half.model, tuple(half.flat), reports)]
    nodes = _Nodes(whole)
    groups = _groups(half, nodes, count)
    if len(groups) == 1:
        return alone
    typed = _typed(half.model)
    done: set[int] = set()
    chosen: list[list[int]] = []
    for index, group in enumerate(groups):
        mine = nodes.behind([*group, *(reports if index == 0 else ())]) - done
        done |= mine
        chosen.append(sorted(mine))
    made = []
    for index, (mine_now, group) in enumerate(zip(chosen, groups, strict=True)):
        computed = {name for i in mine_now for name in whole.node[i].output if name}
        later = {name for rest in chosen[index + 1 :] for name in nodes.read(rest)}
        told = reports if index == 0 else ()
        passed = tuple(sorted(computed & later - {*group, *told}))
        if not typed.keys() >= {*passed}:
            return alone
        outputs = [*group, *told, *passed]
        model = _part(half.model, mine_now, nodes.read(mine_now), outputs, typed)
        made.append(Piece(model, tuple(group), told, passed))
    return made


class _Nodes:
    """Which nodes of a graph read what."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._reads = [list(_reads(node)) for node in graph.node]
        self._of = {name: i for i, node in enumerate(graph.node) for name in node.output if name}

    def read(self, nodes: Iterable[int]) -> dict[str, None]:
        """What these read, in order."""
        return dict.fromkeys(name for index in nodes for name in self._reads[index])

    def behind(self, names: Iterable[str]) -> set[int]:
        """All nodes that these values are computed from."""
        found: set[int] = set()
        waiting = [self._of[name] for name in names if name in self._of]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting += [self._of[name] for name in self._reads[index] if name in self._of]
        return found


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node and all nodes in its graphs read; names inside these are others than outside."""
    for inner in proto_nodes([node]):
        yield from filter(None, inner.input)
        for graph in proto_subgraphs(inner):
            yield from (value.name for value in graph.output)


def _groups(half: GradientGraph, nodes: _Nodes, count: int) -> list[list[str]]:
    """The flat gradients of each piece."""
    order = sorted(half.flat, key=lambda name: len(nodes.behind([name])))
    total, so_far = sum(half.flat.values()), 0
    groups: list[list[str]] = [[]]
    for name in order:
        if so_far >= total * len(groups) / count:
            groups.append([])
        groups[-1].append(name)
        so_far += half.flat[name]
    return groups


def _typed(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """The values whose types are known."""
    found = ir.from_proto(model)
    infer_shapes(found)
    graph = ir.to_proto(found).graph
    values = (*graph.value_info, *model.graph.input, *model.graph.output)
    return {value.name: value for value in values if value.type.WhichOneof("value")}


def _part(
    whole: onnx.ModelProto,
    nodes: Sequence[int],
    read: Iterable[str],
    outputs: Sequence[str],
    typed: dict[str, onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of some of the nodes."""
    model = onnx.ModelProto(ir_version=whole.ir_version, producer_name=whole.producer_name)
    model.opset_import.extend(whole.opset_import)
    model.functions.extend(whole.functions)
    graph = model.graph
    graph.name = whole.graph.name
    graph.node.extend(whole.graph.node[index] for index in nodes)
    computed = {name for node in graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in whole.graph.initializer}
    for name in read:
        if name in stored:
            graph.initializer.append(stored[name])
        elif name in typed and name not in computed:
            graph.input.append(typed[name])
    graph.output.extend(typed[name] for name in outputs)
    return model
