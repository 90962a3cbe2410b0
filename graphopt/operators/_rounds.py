"""Graphs in nodes, and the rounds of a loop: what the gradients of all of them have in common."""

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators._random import drawn_in, use_drawn
from graphopt.operators.backward import Backward
from graphopt.operators.path import Path
from graphopt.operators.record import NoGradient
from graphopt.stage import BACKWARD_PREFIX


def prune(graph: ir.Graph, *kept: ir.Value) -> None:
    """Remove the nodes of a graph that nobody reads, save those of some values."""
    outputs = {*graph.outputs, *kept}
    for node in reversed(graph):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)


def give(op: GraphBuilder, graph: ir.Graph, values: Sequence[ir.Value]) -> None:
    """Let a graph have these outputs; each is computed in it, and none is there twice."""
    own: list[ir.Value] = []
    for value in values:
        node = value.producer()
        if node is None or node.graph is not graph or value in own:
            copy = op.Identity(value)
            copy.type, copy.shape = value.type, value.shape
            value = copy  # noqa: PLW2901
        own.append(value)
    graph.outputs[:] = own


def report(op: GraphBuilder, node: ir.Node, value: ir.Value, count: int | None) -> ir.Value:
    """Let a loop give a value of its body, of all rounds, as one more list.

    Args:
        op: Appends to the body.
        node: The loop.
        value: A value of its body.
        count: How many rounds there are; None where that is not known.
    """
    body = node.attributes["body"].as_graph()
    with op.inside(body):
        give(op, body, [*body.outputs, value])
    node.resize_outputs(len(node.outputs) + 1)
    output = node.outputs[-1]
    output.name = op.fresh_name(f"{value.name}/rounds")
    output.type = value.type
    if value.shape is not None:
        output.shape = ir.Shape([count, *value.shape])
    return output


def needed(b: Backward) -> list[ir.Value]:
    """What is read around the graphs in a node, and has a gradient to get."""
    first = len(b.node.inputs)
    return [b.input(index) for index in range(first, len(b.inputs)) if b.needs(index)]


def answer(
    b: Backward, found: Mapping[int | ir.Value, ir.Value]
) -> Iterator[ir.Value | NoGradient]:
    """The gradients in the order of what the node reads; there is none of what is not found."""
    inputs = len(b.node.inputs)
    for index in range(len(b.inputs)):
        key = index if index < inputs else b.input(index)
        yield found.get(key, NoGradient.ZERO)


def prefix(node: ir.Node) -> str:
    """What the names of the nodes begin with that compute again what a node computes."""
    name = str(node.name or node.outputs[0].name)
    return f"{BACKWARD_PREFIX}{name.removeprefix(BACKWARD_PREFIX)}"


class Rounds:
    """The body of a loop, a copy of it for the backward pass, and what a gradient goes through.

    Attributes:
        body: The body.
        states: How many states it carries.
        copy: The copy, whose states and rows are still its inputs.
        state_in, scanned: The states before a round, and the rows that it gets, in the copy.
        captured: What is read around the body, and has a gradient to get.
        rows: The inputs that give rows to the rounds, and have a gradient to get.
        carried: The states whose gradient goes from round to round.
        reported: The lists whose gradient goes into the rounds.
        d_states: The gradient of each carried state after a round, in the copy.
        original: The values that nodes of the copy give, each with that of the body.
        forward: The nodes of the copy that the body has too, also those in graphs inside it.
        count: How many rounds there are; None where that is not known.
    """

    def __init__(
        self,
        b: Backward,
        first: int,
        states: int,
        inputs: int,
        outputs: int,
        count: int | None = None,
    ) -> None:
        """The rounds of a node.

        Args:
            b: The node.
            first: The place of the first state among its inputs.
            states: How many states it has.
            inputs: How many inputs of the body come before the states.
            outputs: How many outputs.
            count: How many rounds there are; None where that is not known.
        """
        self.b, self.op, self.node = b, b.op, b.node
        self.body = b.node.attributes["body"].as_graph()
        self.count = count
        self.first, self.states, self._inputs, self._outputs = first, states, inputs, outputs
        for value in list(self.body.inputs)[inputs : inputs + states]:
            if isinstance(value.type, ir.SequenceType):
                raise b.error(
                    f"its state '{value.name}' is a sequence, through which no gradient goes back; "
                    "let it give what it inserts as a list (a scan output) instead"
                )
        self.captured = needed(b)
        rows = len(self.body.inputs) - inputs - states
        self.rows = [at for at in range(rows) if b.needs(first + states + at)]
        lists = len(self.body.outputs) - outputs - states
        self.reported = [at for at in range(lists) if b.has_gradient(states + at)]
        self.carried = self._carried()
        self.drawn = drawn_in(self.body, b.node)
        self.drawn_lists = [self.report(one.value) for one in self.drawn]
        self.copy = self.op.copy(self.body, prefix(b.node))
        self.original = {
            own: value
            for copied, node in zip(self.copy, self.body, strict=True)
            for own, value in zip(copied.outputs, node.outputs, strict=True)
        }
        self.forward = {*self.copy.all_nodes()}
        self.state_in = list(self.copy.inputs)[inputs : inputs + states]
        self.scanned = list(self.copy.inputs)[inputs + states :]
        self.d_states = [
            self.input(f"{self.state_in[at].name}/gradient", self.state_in[at])
            for at in self.carried
        ]

    def _carried(self) -> list[int]:
        """The states that depend on something with a gradient, and on which something depends."""
        b, body = self.b, self.body
        state_in = list(body.inputs)[self._inputs :][: self.states]
        state_out = list(body.outputs)[self._outputs :][: self.states]
        rows, lists = body.inputs[self._inputs + self.states :], self._lists(body)
        begins = {*self.captured, *(rows[at] for at in self.rows)}
        ends = [lists[at] for at in self.reported]
        active = {at for at in range(self.states) if b.needs(self.first + at)}
        wanted = {at for at in range(self.states) if b.has_gradient(at)}
        while True:
            sources = begins | {state_in[at] for at in active}
            reached = Path(body, sources, state_out).values
            needed = Path(body, {*begins, *state_in}, [*ends, *(state_out[at] for at in wanted)])
            more = active | {at for at, value in enumerate(state_out) if value in reached}
            before = wanted | {at for at, value in enumerate(state_in) if value in needed.values}
            if (more, before) == (active, wanted):
                return sorted(active & wanted)
            active, wanted = more, before

    def _lists(self, graph: ir.Graph) -> list[ir.Value]:
        return list(graph.outputs)[self._outputs + self.states :]

    def report(self, value: ir.Value) -> ir.Value:
        """Let the node give a value of its body, of all rounds, as one more list."""
        return report(self.op, self.node, value, self.count)

    def input(self, name: str, like: ir.Value) -> ir.Value:
        """A new input for the copy, like another value."""
        return ir.Value(name=self.op.fresh_name(name), type=like.type, shape=like.shape)

    def differentiate(
        self, drawn: Sequence[ir.Value], d_lists: Mapping[int, ir.Value]
    ) -> dict[ir.Value, ir.Value]:
        """Append to the copy; the gradients of its states, its rows, and what is around it.

        Args:
            drawn: In a round, the random numbers that it drew.
            d_lists: In a round, the gradients of what it has added to lists.
        """
        use_drawn(self.op, self.copy, self.drawn, drawn)
        outputs = list(self.copy.outputs)[self._outputs :]
        seeds: dict[ir.Value, ir.Value] = {}
        for value, gradient in (
            *((outputs[at], d) for at, d in zip(self.carried, self.d_states, strict=True)),
            *((outputs[self.states + at], d) for at, d in d_lists.items()),
        ):
            seeds[value] = self.op.Add(seeds[value], gradient) if value in seeds else gradient
        states = [self.state_in[at] for at in self.carried]
        rows = [self.scanned[at] for at in self.rows]
        return self.b.differentiate(self.copy, [*states, *rows, *self.captured], seeds)

    def gradient(self, found: Mapping[ir.Value, ir.Value], value: ir.Value) -> ir.Value:
        """The gradient of a value of the copy, or zeros."""
        return found.get(value) or self.b.zeros_like(value)

    def leave(
        self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], *kept: ir.Value
    ) -> None:
        """Give the copy its inputs and outputs, and remove what neither they nor others need."""
        self.copy.sort()
        with self.op.inside(self.copy):
            give(self.op, self.copy, outputs)
        prune(self.copy, *kept)
        self.copy.inputs[:] = inputs
