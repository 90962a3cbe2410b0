"""The memory that a step needs: parameters, gradients and states, and what it holds at once."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graphs import operands
from graphopt.inspection.facts import MemoryFacts, ParameterFacts
from graphopt.inspection.reading.dataflow import dtype_name
from graphopt.inspection.reading.read_model import Reading
from graphopt.inspection.structure.stages import values
from graphopt.operators import Moves, of
from graphopt.shapes.engine import Scope, Shapes
from graphopt.stage import Stage

_CONSTANT = "Constant"


def memory_facts(
    reading: Reading,
    parameters: Sequence[ParameterFacts],
    stages: Sequence[Stage],
    shapes: Shapes,
    sizes: Mapping[str, int],
) -> MemoryFacts:
    """What a step needs, with these sizes of open dimensions."""
    stored, nodes = reading.file.model.graph.initializers, reading.recovered
    size = sum(parameter.bytes for parameter in parameters)
    trained = nodes.trained if nodes is not None else ()
    own = {parameter.name for parameter in parameters}
    resident = [write.input.name for write in reading.carried]
    resident += stored
    resident += [t.gradient.source.name for t in trained if t.gradient is not None]
    return MemoryFacts(
        parameters=size,
        frozen=sum(
            value.const_value.size * (np.dtype(dtype).itemsize if dtype else 0)
            for name, value in stored.items()
            if name not in own and value.const_value is not None
            for dtype in [dtype_name(value.const_value.dtype)]
        ),
        gradients=size if any(parameter.gradient for parameter in parameters) else 0,
        states=sum(parameter.state_bytes for parameter in parameters),
        activations=peak_activations(stages, shapes, resident),
        sizes=sizes,
    )


def peak_activations(
    stages: Sequence[Stage], shapes: Shapes, resident: Collection[str]
) -> int | None:
    """The most bytes that tensors between the nodes of the forward and backward pass hold at once.

    Nodes run in the order of the file. A node holds what it reads and what it gives; a tensor is
    held until its last reader has run, and to the end where the update or the caller reads it. A
    reshaped tensor shares the memory of the tensor that it was. What is fed is not counted, nor
    the gradients of parameters: what the backward pass computes for the update.

    Args:
        stages: The stage of each node.
        shapes: What is known of its values.
        resident: Names of values that are counted elsewhere: initializers, what is carried.

    Returns:
        Bytes; None where the size of such a tensor is not known.
    """
    graph = shapes.model.graph
    pairs = list(zip(graph, stages, strict=True))
    nodes = [node for node, stage in pairs if stage != "update"]
    results = [value for node in nodes for value in node.outputs]
    kept = {value for node, stage in pairs if stage == "update" for value in values(node)}
    kept = kept.union(graph.outputs).intersection(results)
    gradients = {
        value
        for node, stage in pairs
        if stage == "backward"
        for value in kept.intersection(node.outputs)
    }
    elsewhere = gradients.union(value for value in results if value.name in resident)
    try:
        return _Peak(shapes).of(nodes, shapes.scope, elsewhere, kept)
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
        nodes: Sequence[ir.Node],
        scope: Scope,
        elsewhere: Collection[ir.Value],
        kept: Collection[ir.Value],
    ) -> int:
        """The most bytes that the results of these nodes hold at once.

        Args:
            nodes: The nodes, in order.
            scope: Where they stand.
            elsewhere: Results of them that are counted elsewhere.
            kept: Results that are held to the end.
        """
        memory = _memory_of(nodes)
        counted = set(memory.values()) - {memory[value] for value in elsewhere if value in memory}
        sizes = {value: self._size(value, scope) for value in counted}
        last = _last_readers(nodes, memory, kept)
        held = most = 0
        for at, node in enumerate(nodes):
            own = {memory[value] for value in node.outputs if memory.get(value) is value}
            held += sum(sizes.get(value, 0) for value in own)
            most = max(most, held + self._in(node, scope))
            over = {memory[value] for value in operands(node) if value in memory} | own
            held -= sum(sizes.get(value, 0) for value in over if last[value] == at)
        return most

    def _size(self, value: ir.Value, scope: Scope) -> int:
        size = scope.of(value).bytes
        if size is None:
            raise _UnknownSizeError(value.name)
        return size

    def _in(self, node: ir.Node, scope: Scope) -> int:
        """The most that is held inside a node, its inputs and outputs not counted."""
        most = 0
        for body in self._shapes.bodies(node, scope):
            key = id(body.scope)
            if key not in self._inside:
                inner = self.of(tuple(body.graph), body.scope, body.graph.outputs, kept=())
                # The scope is kept with the result, so that its id stays its.
                self._inside[key] = body.scope, inner
            most = max(most, self._inside[key][1])
        return most


def _memory_of(nodes: Iterable[ir.Node]) -> dict[ir.Value, ir.Value]:
    """For each result, the result whose memory it has; those without memory are left out.

    These are constants, and views of what is not a result of these nodes.
    """
    memory: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        operator = of(node)
        if operator.moves is Moves.SHAPE and len(node.outputs) == 1 and node.inputs:
            if node.inputs[0] in memory:
                memory[node.outputs[0]] = memory[node.inputs[0]]
        elif operator.name != _CONSTANT:
            memory |= {value: value for value in node.outputs if value.name}
    return memory


def _last_readers(
    nodes: Sequence[ir.Node], memory: Mapping[ir.Value, ir.Value], kept: Collection[ir.Value]
) -> dict[ir.Value, int]:
    """The index of the last node that uses each memory."""
    last: dict[ir.Value, int] = {}
    for at, node in enumerate(nodes):
        for value in (*operands(node), *node.outputs):
            if value in memory:
                last[memory[value]] = at
    last |= {memory[value]: len(nodes) for value in kept if value in memory}
    return last
