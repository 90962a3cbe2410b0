"""What a step computes, and what it reads and writes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.inspection.facts import StageFacts
from graphopt.operators import Moves, of
from graphopt.shapes.engine import Body, Scope, Shapes
from graphopt.shapes.node import Node
from graphopt.shapes.values import TensorInfo
from graphopt.stage import STAGES, Stage

_DOMAIN = "graphopt"
_UPDATES = "RMSProp"
_CONSTANT = "Constant"  # which is in the file


@dataclass(frozen=True)
class Cost:
    """What some nodes cost.

    Attributes:
        nodes: How many there are, those inside functions, branches and loops included.
        flops: The floating-point operations of those of which they are known.
        bytes: What those read and write of which that is known.
        unknown: How many could not be counted.
    """

    nodes: int = 0
    flops: int = 0
    bytes: int = 0
    unknown: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Both."""
        return Cost(
            self.nodes + other.nodes,
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.unknown + other.unknown,
        )

    def repeated(self, times: int) -> "Cost":
        """The same nodes, run several times."""
        return Cost(self.nodes, self.flops * times, self.bytes * times, self.unknown)


def stage_facts(stages: Sequence[Stage], shapes: Shapes) -> tuple[StageFacts, ...]:
    """What each stage of a step does.

    Functions are counted by their bodies, a loop as often as it runs, and of two branches the one
    that costs more. Bytes are those of all operands and results, as if nothing stayed in
    caches; a reshaped tensor is not moved. The update of a bucket runs in pieces that stay in
    caches, so there the bytes are those of the inputs and outputs of its function, or of its Scan
    where functions are written out.

    Args:
        stages: The stage of each node of the graph.
        shapes: What is known of its values.

    Returns:
        The four stages, in order.
    """
    counted, nodes = dict.fromkeys(STAGES, Cost()), Counter(stages)
    for stage, cost in zip(stages, node_costs(stages, shapes), strict=True):
        counted[stage] += cost
    return tuple(_facts(stage, nodes[stage], cost) for stage, cost in counted.items())


def node_costs(stages: Sequence[Stage], shapes: Shapes) -> list[Cost]:
    """What each node of the graph costs, with what it calls; see `stage_facts`."""
    counter = _Counter(shapes)
    return [
        counter.of(node, shapes.scope, updates=stage == "update")
        for node, stage in zip(shapes.model.graph, stages, strict=True)
    ]


def _facts(stage: Stage, nodes: int, cost: Cost) -> StageFacts:
    known = not cost.nodes or cost.unknown < cost.nodes
    flops, moved = (cost.flops, cost.bytes) if known else (None, cost.bytes or None)
    return StageFacts(stage, nodes, flops, moved, cost.unknown, cost.nodes - nodes)


class _Counter:
    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._bodies: dict[int, tuple[Body, Cost]] = {}

    def of(self, node: ir.Node, scope: Scope, *, updates: bool = False) -> Cost:
        """The cost of a node."""
        known = scope.node(node)
        outputs = [scope.of(value) for value in node.outputs if value.name]
        moved = _moved(known, outputs)
        bodies = self._shapes.bodies(node, scope)
        if not bodies:
            return _simple(known, outputs, moved)
        inside = self._inside(bodies)
        if _stays_in_caches(node, updates=updates):
            return Cost(inside.nodes, inside.flops, moved or 0, inside.unknown + (moved is None))
        return inside

    def _inside(self, bodies: Sequence[Body]) -> Cost:
        """The cost of a node with bodies, itself included."""
        costs = [self._body(body) for body in bodies]
        worst = max(costs, key=lambda cost: (cost.flops, cost.bytes))
        nodes = 1 + sum(cost.nodes for cost in costs)
        unknown = sum(cost.unknown for cost in costs)
        return Cost(nodes, worst.flops, worst.bytes, unknown)

    def _body(self, body: Body) -> Cost:
        key = id(body.scope)
        if key not in self._bodies:
            cost = sum((self.of(node, body.scope) for node in body.graph), start=Cost())
            # The body is kept with its cost, so that its id stays its.
            self._bodies[key] = body, cost
        cost = self._bodies[key][1]
        if not isinstance(body.times, int):
            return Cost(cost.nodes, 0, 0, cost.unknown + 1)
        return cost.repeated(body.times)


def _simple(node: Node, outputs: Sequence[TensorInfo], moved: int | None) -> Cost:
    operations = of(node.op_type).count(node, outputs)
    return Cost(1, operations or 0, moved or 0, int(operations is None or moved is None))


def _stays_in_caches(node: ir.Node, *, updates: bool) -> bool:
    """Whether a node is the update of a bucket."""
    if node.domain == _DOMAIN:
        return _UPDATES in node.op_type
    return updates and node.op_type == "Scan"


def _moved(node: Node, outputs: Sequence[TensorInfo]) -> int | None:
    """The bytes that a node reads and writes."""
    operator = of(node.op_type)
    if operator.moves is Moves.SHAPE or operator.elements == 0 or operator.name == _CONSTANT:
        return 0
    written = [info.bytes for info in outputs]
    read = [info.bytes for info in node.inputs if info is not None]
    if operator.moves is Moves.PART:  # it reads as much as it writes, however large the whole is
        read[:1] = written
    if not written or None in written or None in read:
        return None
    return sum(size for size in (*written, *read) if size is not None)
