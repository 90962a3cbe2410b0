"""What the backward pass computes again rather than keep: memory for time.

The nodes of the forward pass are cut into segments. What goes from a segment into a later one is
kept; of the rest that the backward pass reads, some is computed again, by copies of the nodes that
computed it. These must not run before the backward pass comes to the segment, and a runtime must
not take them for the nodes that they copy. So what they begin with waits for the gradient of what
leaves the segment: it goes through a Reshape, which is free, to its own shape plus 0, and the 0 is
computed from the size of that gradient.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.graphs import captured, needed_for, operands, subgraphs
from graphopt.operators import Moves, of
from graphopt.stage import AGAIN_PREFIX, BACKWARD_PREFIX

Memory = Literal["fast", "balanced", "low"]
"""How much of the forward pass is kept for the backward pass."""
MEMORY: tuple[Memory, ...] = get_args(Memory)

_OPEN = 8  # the size that is assumed of open dimensions, where values are compared
_MOST_SEGMENTS = 64


def recompute(
    op: GraphBuilder,
    results: Iterable[ir.Value],
    gradients: Mapping[ir.Value, ir.Value],
    memory: Memory,
) -> None:
    """Let the backward pass of a sorted graph compute again what it reads of the forward pass.

    Args:
        op: Appends to the graph, which has no nodes that nothing needs.
        results: What the forward pass is for, in addition to the outputs of the graph.
        gradients: The gradient of each value into which one flows.
        memory: "fast": everything is kept. "balanced": what elementwise operators give and what
            only moves elements is computed again from what is kept anyway. "low": of each segment,
            everything but what goes into a later one.
    """
    if memory == "fast":
        return
    outputs = {*op.graph.outputs, *results}
    needed = needed_for(outputs, op.graph)
    forward = _Forward([n for n in op.graph if not needed.isdisjoint(n.outputs)], gradients)
    backward = [node for node in op.graph if needed.isdisjoint(node.outputs)]
    read = {value for node in backward for value in operands(node)} & forward.place.keys()
    fixed = outputs | {value for node in backward for value in captured(node)}
    fixed |= {value for value in forward.place if not forward.can_repeat(value)}
    segments = [
        (first, end, gate)
        for first, end in pairwise(forward.cuts(read - fixed, memory))
        if (gate := forward.gate(end)) is not None
    ]
    copies: dict[ir.Value, ir.Value] = {}
    order = list(op.graph)
    for first, end, gate in reversed(segments):  # as the backward pass goes
        # What is read before the gate opens has to be there.
        fixed |= _read_for(gate, order, needed)
        inside = [value for value in forward.values(first, end) if value in read]
        kept = fixed | forward.crossing(end) | forward.before(first)
        if memory == "balanced":
            kept |= _not_cheap(inside, kept | {*inside})
        copies |= _Copies(op, forward, kept, gate).of(v for v in inside if v not in kept)
    for node in backward:
        for index, value in enumerate(node.inputs):
            if value in copies:
                node.replace_input_with(index, copies[value])
    op.graph.sort()


def _read_for(
    gate: ir.Value, order: Sequence[ir.Node], forward: Collection[ir.Value]
) -> set[ir.Value]:
    """What the nodes of the backward pass read that compute a gradient."""
    needed: set[ir.Value] = {gate}
    read: set[ir.Value] = set()
    for node in reversed(order):
        if not needed.isdisjoint(node.outputs) and not any(v in forward for v in node.outputs):
            needed.update(operands(node))
            read.update(operands(node))
    return read


class _Forward:
    """The forward pass: its nodes in order, and where each of its values is computed and read."""

    def __init__(self, nodes: Sequence[ir.Node], gradients: Mapping[ir.Value, ir.Value]) -> None:
        self.nodes = nodes
        self.place = {value: at for at, node in enumerate(nodes) for value in node.outputs}
        self.first_reader: dict[ir.Value, int] = {}
        self.last_reader: dict[ir.Value, int] = {}
        for at, node in enumerate(nodes):
            for value in operands(node):
                self.first_reader.setdefault(value, at)
                self.last_reader[value] = at
        self._gradients = gradients
        self._moving: set[ir.Value] = set()
        for node in nodes:
            if any(v in self._moving or _is_fed(v) for v in operands(node)):
                self._moving.update(node.outputs)

    def can_repeat(self, value: ir.Value) -> bool:
        """Whether a copy of its node gives the same, and it depends on what is fed.

        What depends on parameters alone is kept: it does not grow with the batch.
        """
        node = self.nodes[self.place[value]]
        return (
            value in self._moving
            and not node.domain
            and not of(node).is_random
            and not any(True for _ in subgraphs(node))
            and isinstance(value.type, ir.TensorType | None)
        )

    def values(self, first: int, end: int) -> Iterator[ir.Value]:
        """What the nodes from one to before another compute."""
        for node in self.nodes[first:end]:
            yield from node.outputs

    def before(self, first: int) -> set[ir.Value]:
        """What is computed before a node."""
        return {*self.values(0, first)}

    def crossing(self, cut: int) -> set[ir.Value]:
        """What is computed before a cut and read behind it."""
        return {v for v in self.values(0, cut) if self.last_reader.get(v, -1) >= cut}

    def gate(self, cut: int) -> ir.Value | None:
        """The gradient of what crosses a cut, which needs nothing of what lies before it."""
        for value in self.values(0, cut):
            if self.first_reader.get(value, -1) >= cut and value in self._gradients:
                return self._gradients[value]
        return None

    def cuts(self, kept: Collection[ir.Value], memory: Memory) -> list[int]:
        """Where the segments begin and end: few values cross, and each has its share of the rest.

        Of all numbers of segments, the one is taken with which least is held: what crosses, and
        the largest segment.
        """
        sizes = [sum(_bytes(v) for v in node.outputs if v in kept) for node in self.nodes]
        crossing = self._crossing_bytes()
        possible = [at for at in range(1, len(sizes)) if self.gate(at) is not None]
        if not possible:
            return [0]
        best: tuple[float, list[int]] = (math.inf, [0])
        numbers = range(1, _MOST_SEGMENTS) if memory == "low" else [_MOST_SEGMENTS]
        for number in numbers:
            cuts = _cuts(sizes, crossing, possible, number)
            if memory == "balanced":
                return cuts
            largest = max(sum(sizes[a:b]) for a, b in pairwise([*cuts, len(sizes)]))
            held = sum(crossing[cut] for cut in cuts) + largest
            best = min(best, (held, cuts))
        return best[1]

    def _crossing_bytes(self) -> list[int]:
        changes = [0] * (len(self.nodes) + 1)
        for value, at in self.place.items():
            last = self.last_reader.get(value, at)
            changes[min(at + 1, len(self.nodes))] += _bytes(value)
            changes[min(last + 1, len(self.nodes))] -= _bytes(value)
        totals, total = [], 0
        for change in changes:
            total += change
            totals.append(total)
        return totals


def _cuts(
    sizes: Sequence[int], crossing: Sequence[int], possible: Sequence[int], number: int
) -> list[int]:
    """So many cuts, the first at 0: near equal shares of the sizes, where least crosses."""
    share, sums, total = sum(sizes) / (number + 1), [], 0
    for size in sizes:
        sums.append(total)
        total += size
    cuts = {0}
    for k in range(1, number + 1):
        near = [at for at in possible if abs(sums[at] - k * share) <= share / 2]
        if near:
            cuts.add(min(near, key=lambda at: (crossing[at], at)))
    return sorted(cuts)


def _not_cheap(values: Sequence[ir.Value], kept: set[ir.Value]) -> set[ir.Value]:
    """Those that cheap operators do not compute from the rest of what is kept."""
    kept = set(kept)
    for value in reversed(values):
        if _is_cheap(value, kept - {value}):
            kept.discard(value)
    return kept


def _is_cheap(value: ir.Value, kept: Collection[ir.Value]) -> bool:
    waiting = [value]
    while waiting:
        node = waiting.pop().producer()
        if node is None:
            continue
        operator = of(node)
        if not (operator.is_elementwise or operator.moves is not Moves.NOT):
            return False
        waiting += [v for v in node.inputs if v is not None and v not in kept]
    return True


class _Copies:
    """Copies of the nodes of a segment."""

    def __init__(
        self, op: GraphBuilder, forward: _Forward, kept: Collection[ir.Value], gate: ir.Value
    ) -> None:
        self._op, self._forward, self._kept = op, forward, kept
        self._gate = gate
        self._zero: ir.Value | None = None
        self._copies: dict[ir.Value, ir.Value] = {}
        self._waiting: dict[ir.Value, ir.Value] = {}

    def of(self, values: Iterable[ir.Value]) -> dict[ir.Value, ir.Value]:
        """The copy of each value."""
        needed, left = set(), list(values)
        wanted = list(left)
        while left:
            value = left.pop()
            if value in self._forward.place and value not in self._kept:
                at = self._forward.place[value]
                if at not in needed:
                    needed.add(at)
                    left += operands(self._forward.nodes[at])
        for at in sorted(needed):
            self._copy(self._forward.nodes[at])
        return {value: self._copies[value] for value in wanted}

    def _copy(self, node: ir.Node) -> None:
        inputs = [self._copies.get(v, v) if v is not None else None for v in node.inputs]
        if all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
            # The largest of what is fed or computed from it: the others need not wait as well.
            moving = [i for i, v in enumerate(inputs) if v is not None and self._moves(v)]
            index = max(moving, key=lambda i: _bytes(node.inputs[i]))
            inputs[index] = self._after_gate(node.inputs[index])
        with self._op.named(f"{BACKWARD_PREFIX}{node.name or node.outputs[0].name}/again"):
            made = self._op.node(
                node.op_type, inputs, outputs=len(node.outputs), **dict[str, Any](node.attributes)
            )
        for old, new in zip(node.outputs, made, strict=True):
            new.type, new.shape = old.type, old.shape
            if not old.name:
                new.name = ""
            self._copies[old] = new

    def _moves(self, value: ir.Value) -> bool:
        return value in self._forward.place or _is_fed(value)

    def _after_gate(self, value: ir.Value | None) -> ir.Value:
        assert value is not None
        if value not in self._waiting:
            with self._op.named(AGAIN_PREFIX.rstrip("/")):
                if self._zero is None:
                    self._zero = self._op.Min(self._op.Size(self._gate), [0])
                shape = self._op.Add(self._op.Shape(value), self._zero)
                again = self._op.Reshape(value, shape)
            again.type, again.shape = value.type, value.shape
            self._waiting[value] = again
        return self._waiting[value]


def _is_fed(value: ir.Value) -> bool:
    return value.is_graph_input() and not value.is_initializer()


def _bytes(value: ir.Value | None) -> int:
    """As far as it is known, for a batch of some size."""
    if value is None or value.shape is None or value.dtype is None:
        return 0
    sizes = [size if isinstance(size, int) else _OPEN for size in value.shape]
    return int(math.prod(sizes) * value.dtype.itemsize)
