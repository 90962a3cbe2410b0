"""What the backward pass computes again rather than keep: memory for time.

The nodes of the forward pass are cut into segments. What goes from a segment into a later one is
kept; of the rest that the backward pass reads, some is computed again, by copies of the nodes that
computed it. These must not run before the backward pass comes to the segment, and a runtime must
not take them for the nodes that they copy. So what they begin with waits for the gradient of what
leaves the segment: it goes through a Reshape, which is free, to its own shape plus 0, and the 0 is
computed from the size of that gradient.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Set as AbstractSet
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple, get_args

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._cheap import kept_for
from graphopt.gradients._cuts import least_held, near_equal
from graphopt.gradients._forward import Forward, bytes_of, is_fed
from graphopt.gradients._from_one import from_one
from graphopt.graphs import captured, needed_for, operands
from graphopt.stage import AGAIN_PREFIX, BACKWARD_PREFIX

Memory = Literal["fast", "balanced", "low"]
"""How much of the forward pass is kept for the backward pass."""
MEMORY: tuple[Memory, ...] = get_args(Memory)


def recompute(
    op: GraphBuilder,
    results: Iterable[ir.Value],
    gradients: Mapping[ir.Value, ir.Value],
    memory: Memory,
    provider: str,
) -> None:
    """Let the backward pass of a sorted graph compute again what it reads of the forward pass.

    Args:
        op: Appends to the graph, which has no nodes that nothing needs.
        results: What the forward pass is for, in addition to the outputs of the graph.
        gradients: The gradient of each value into which one flows.
        memory: "fast": what quick operators give of one value that is kept anyway is computed again
            on the CPU; the rest is kept. "balanced": what cheap operators give is computed again
            from what is kept. "low": that, and of each segment, everything but what goes into a
            later one.
        provider: The execution provider.
    """
    outputs = {*op.graph.outputs, *results}
    if memory == "fast" and provider == "CPUExecutionProvider":
        _recompute_from_one(op, outputs, gradients)
    if memory != "fast":
        _recompute(op, outputs, gradients, whole=False, is_last=memory == "balanced")
    if memory == "low":
        _recompute(op, outputs, gradients, whole=True, is_last=True)


def _recompute(
    op: GraphBuilder,
    outputs: set[ir.Value],
    gradients: Mapping[ir.Value, ir.Value],
    whole: bool,
    is_last: bool,
) -> None:
    """Compute again what cheap operators give, or whole segments."""
    needed = needed_for(outputs, op.graph)
    forward, backward, read, fixed = _parts(op, outputs, needed, gradients)
    if whole:
        always, cuts = fixed, least_held(forward, read - fixed)
    else:
        always = kept_for(forward, [v for v in forward.place if v in read], fixed)
        cuts = near_equal(forward, read - always, always, is_last)
    segments = [
        (first, end, gate)
        for first, end in pairwise(cuts)
        if (gate := forward.gate(end)) is not None
    ]
    copies: dict[ir.Value, ir.Value] = {}
    seen: set[ir.Node] = set()
    for first, end, gate in reversed(segments):  # as the backward pass goes
        # What is read before the gate opens has to be there.
        always.update(_read_for(gate, needed, seen))
        kept = always | forward.crossing(end) | forward.before(first)
        inside = (value for value in forward.values(first, end) if value in read)
        copies |= _Copies(op, forward, kept, gate).of(v for v in inside if v not in kept)
    _read_copies(op, backward, copies)


def _recompute_from_one(
    op: GraphBuilder, outputs: set[ir.Value], gradients: Mapping[ir.Value, ir.Value]
) -> None:
    """Compute again what quick operators give of one value that is kept anyway."""
    needed = needed_for(outputs, op.graph)
    forward, backward, read, fixed = _parts(op, outputs, needed, gradients)
    sources = from_one(forward, [v for v in forward.place if v in read], fixed)
    ends = {s: 1 + max(forward.last_reader[v] for v in values) for s, values in sources.items()}
    kept = forward.place.keys() - chain.from_iterable(sources.values())
    always: set[ir.Value] = set()
    copies: dict[ir.Value, ir.Value] = {}
    seen: set[ir.Node] = set()
    for source in sorted(sources, key=ends.__getitem__, reverse=True):
        gate = forward.gate(ends[source])
        if gate is None:
            continue
        always.update(_read_for(gate, needed, seen))
        wanted = [v for v in sources[source] if v in read and v not in always]
        copies |= _Copies(op, forward, kept, gate).of(wanted)
    _read_copies(op, backward, copies)


class _Parts(NamedTuple):
    """A graph as its backward pass sees it.

    Attributes:
        forward: The forward pass.
        backward: The nodes of the backward pass.
        read: What these read of the forward pass.
        fixed: What is kept anyway.
    """

    forward: Forward
    backward: list[ir.Node]
    read: set[ir.Value]
    fixed: set[ir.Value]


def _parts(
    op: GraphBuilder,
    outputs: set[ir.Value],
    needed: AbstractSet[ir.Value],
    gradients: Mapping[ir.Value, ir.Value],
) -> _Parts:
    forward = Forward([n for n in op.graph if not needed.isdisjoint(n.outputs)], gradients)
    backward = [node for node in op.graph if needed.isdisjoint(node.outputs)]
    read = {value for node in backward for value in operands(node)} & forward.place.keys()
    fixed = outputs | {value for node in backward for value in captured(node)}
    fixed |= {value for value in forward.place if not forward.can_repeat(value)}
    return _Parts(forward, backward, read, fixed)


def _read_copies(
    op: GraphBuilder, backward: Iterable[ir.Node], copies: Mapping[ir.Value, ir.Value]
) -> None:
    """Let the backward pass read copies of values."""
    for node in backward:
        for index, value in enumerate(node.inputs):
            if value is not None and value in copies:
                node.replace_input_with(index, copies[value])
    op.graph.sort()


def _read_for(
    gate: ir.Value, forward: Collection[ir.Value], seen: set[ir.Node]
) -> Iterator[ir.Value]:
    """What the nodes of the backward pass read that compute a gradient, and are not seen yet."""
    waiting = [gate]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen or any(value in forward for value in node.outputs):
            continue
        seen.add(node)
        read = [*operands(node)]
        yield from read
        waiting += read


class _Copies:
    """Copies of the nodes of a segment."""

    def __init__(
        self, op: GraphBuilder, forward: Forward, kept: Collection[ir.Value], gate: ir.Value
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
            index = max(moving, key=lambda i: bytes_of(node.inputs[i]))
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
        return value in self._forward.place or is_fed(value)

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
