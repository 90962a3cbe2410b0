"""The memory that a step needs beside parameters, gradients and states."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx

from graphopt._nodes import operands
from graphopt.inspection.costs.flops import VIEWS
from graphopt.inspection.costs.shape_values import operator
from graphopt.inspection.costs.shapes import Scope, Shapes
from graphopt.inspection.structure.stages import values
from graphopt.stage import Stage

_CONSTANT = "Constant"


def peak_activations(
    model: onnx.ModelProto, stages: Sequence[Stage], shapes: Shapes, resident: Collection[str]
) -> int | None:
    """The most bytes that tensors between the nodes of the forward and backward pass hold at once.

    Nodes run in the order of the file. A node holds what it reads and what it gives; a tensor is
    held until its last reader has run, and to the end where the update or the caller reads it. A
    reshaped tensor shares the memory of the tensor that it was. What is fed is not counted, nor
    the gradients of parameters: what the backward pass computes for the update.

    Args:
        model: The model.
        stages: The stage of each node.
        shapes: What is known of its values.
        resident: Names of values that are counted elsewhere: initializers, what is carried.

    Returns:
        Bytes; None where the size of such a tensor is not known.
    """
    pairs = list(zip(model.graph.node, stages, strict=True))
    nodes = [node for node, stage in pairs if stage != "update"]
    read_later = {name for node, stage in pairs if stage == "update" for name in values(node)} | {
        value.name for value in model.graph.output
    }
    gradients = {
        name for node, stage in pairs if stage == "backward" for name in node.output
    } & read_later
    peak = _Peak(shapes)
    try:
        return peak.of(nodes, shapes.scope, {*resident, *gradients}, kept=read_later)
    except _UnknownSizeError:
        return None


class _UnknownSizeError(Exception):
    """The size of a tensor is not known."""


class _Peak:
    """The most that some nodes hold at once, what is inside them included."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._inside: dict[int, tuple[Scope, int]] = {}

    def of(
        self,
        nodes: Sequence[onnx.NodeProto],
        scope: Scope,
        elsewhere: Collection[str],
        kept: Collection[str],
    ) -> int:
        """The most bytes that the results of these nodes hold at once.

        Args:
            nodes: The nodes, in order.
            scope: Where they stand.
            elsewhere: Results of them that are counted elsewhere.
            kept: Results that are held to the end.
        """
        memory = _memory_of(nodes)
        counted = set(memory.values()) - {memory[name] for name in elsewhere if name in memory}
        sizes = {name: self._size(name, scope) for name in counted}
        last = _last_readers(nodes, memory, kept)
        held = most = 0
        for at, node in enumerate(nodes):
            own = {memory[name] for name in node.output if memory.get(name) == name}
            held += sum(sizes.get(name, 0) for name in own)
            most = max(most, held + self._in(node, scope))
            over = {memory[name] for name in operands(node) if name in memory} | own
            held -= sum(sizes.get(name, 0) for name in over if last[name] == at)
        return most

    def _size(self, name: str, scope: Scope) -> int:
        size = scope.of(name).bytes
        if size is None:
            raise _UnknownSizeError(name)
        return size

    def _in(self, node: onnx.NodeProto, scope: Scope) -> int:
        """The most that is held inside a node, its inputs and outputs not counted."""
        most = 0
        for body in self._shapes.bodies(node, scope):
            key = id(body.scope)
            if key not in self._inside:
                inner = self.of(body.nodes, body.scope, body.outputs, kept=())
                # The scope is kept with the result, so that its id stays its.
                self._inside[key] = body.scope, inner
            most = max(most, self._inside[key][1])
        return most


def _memory_of(nodes: Iterable[onnx.NodeProto]) -> dict[str, str]:
    """For each result, the result whose memory it has; those without memory are left out.

    These are constants, and views of what is not a result of these nodes.
    """
    memory: dict[str, str] = {}
    for node in nodes:
        name = operator(node)
        if name in VIEWS and len(node.output) == 1 and node.input:
            if node.input[0] in memory:
                memory[node.output[0]] = memory[node.input[0]]
        elif name != _CONSTANT:
            memory |= {output: output for output in node.output if output}
    return memory


def _last_readers(
    nodes: Sequence[onnx.NodeProto], memory: Mapping[str, str], kept: Collection[str]
) -> dict[str, int]:
    """The index of the last node that uses each memory."""
    last: dict[str, int] = {}
    for at, node in enumerate(nodes):
        for name in (*operands(node), *node.output):
            if name in memory:
                last[memory[name]] = at
    last |= {memory[name]: len(nodes) for name in kept if name in memory}
    return last
