"""Branches and loops: their gradients are branches and loops themselves.

What a branch or a round computes is computed again in the backward pass, from what it has read: the
values of the graphs around it, and the states before the round, which the loop reports for that.
Random numbers are not drawn again, but reported too.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators._random import Drawn, drawn_in, use_drawn
from graphopt.operators.backward import Backward
from graphopt.operators.path import Path
from graphopt.operators.record import NoGradient, operator
from graphopt.stage import BACKWARD_PREFIX


def _prune(graph: ir.Graph, *kept: ir.Value) -> None:
    """Remove the nodes of a graph that nobody reads, save those of some values."""
    outputs = {*graph.outputs, *kept}
    for node in reversed(graph):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)


def _give(op: GraphBuilder, graph: ir.Graph, values: Sequence[ir.Value]) -> None:
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


def _needed(b: Backward) -> list[ir.Value]:
    """What is read around the graphs in a node, and has a gradient to get."""
    first = len(b.node.inputs)
    return [b.input(index) for index in range(first, len(b.inputs)) if b.needs(index)]


def _answer(
    b: Backward, found: Mapping[int | ir.Value, ir.Value]
) -> Iterator[ir.Value | NoGradient]:
    """The gradients in the order of what the node reads; there is none of what is not found."""
    inputs = len(b.node.inputs)
    for index in range(len(b.inputs)):
        key = index if index < inputs else b.input(index)
        yield found.get(key, NoGradient.ZERO)


def _prefix(node: ir.Node) -> str:
    """What the names of the nodes begin with that compute again what a node computes."""
    name = str(node.name or node.outputs[0].name)
    return f"{BACKWARD_PREFIX}{name.removeprefix(BACKWARD_PREFIX)}"


# Branches ------------------------------------------------------------------------------------


@operator("If")
def branches(b: Backward) -> Iterator[ir.Value | NoGradient]:
    """An If of the same condition, whose branches give the gradients of what the branches read."""
    op, node = b.op, b.node
    wanted = _needed(b)
    names = ("then_branch", "else_branch")
    drawn = {name: drawn_in(node.attributes[name].as_graph(), node) for name in names}
    reported = _report_from_branches(op, node, drawn)
    backward: dict[str, Any] = {}
    for name in names:
        copy = op.copy(node.attributes[name].as_graph(), f"{_prefix(node)}/{name}")
        with op.inside(copy):
            use_drawn(op, copy, drawn[name], reported[name])
            seeds = {
                value: b.gradient(index)
                for index, value in enumerate(copy.outputs)
                if b.has_gradient(index)
            }
            found = b.differentiate(copy, wanted, seeds)
            _give(op, copy, [found.get(v) or b.zeros_like(v) for v in wanted])
        _prune(copy)
        backward[name] = copy
    gradients = op.node("If", [b.x], outputs=len(wanted), **backward)
    yield from _answer(b, dict(zip(wanted, gradients, strict=True)))


def _report_from_branches(
    op: GraphBuilder, node: ir.Node, drawn: Mapping[str, Sequence[Drawn]]
) -> dict[str, list[ir.Value]]:
    """Let an If report what one of its branches draws; the other gives nothing in its place."""
    reported: dict[str, list[ir.Value]] = {}
    for name, values in drawn.items():
        reported[name] = []
        for one in values:
            for other in drawn:
                graph = node.attributes[other].as_graph()
                with op.inside(graph):
                    dtype = one.value.dtype or ir.DataType.FLOAT
                    nothing = np.zeros(0, dtype.numpy())
                    value = op.Identity(one.value if other == name else nothing)
                    value.dtype = dtype
                    graph.outputs.append(value)
            node.resize_outputs(len(node.outputs) + 1)
            output = node.outputs[-1]
            output.name = op.fresh_name(f"{one.value.name}/drawn")
            output.type, output.shape = one.value.type, one.value.shape
            reported[name].append(output)
    return reported


# Loops ---------------------------------------------------------------------------------------


class _Rounds:
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
    """

    def __init__(self, b: Backward, first: int, states: int, inputs: int, outputs: int) -> None:
        """The rounds of a node.

        Args:
            b: The node.
            first: The place of the first state among its inputs.
            states: How many states it has.
            inputs: How many inputs of the body come before the states.
            outputs: How many outputs.
        """
        self.b, self.op, self.node = b, b.op, b.node
        self.body = b.node.attributes["body"].as_graph()
        self.first, self.states, self._inputs, self._outputs = first, states, inputs, outputs
        for value in list(self.body.inputs)[inputs : inputs + states]:
            if isinstance(value.type, ir.SequenceType):
                raise b.error(
                    f"its state '{value.name}' is a sequence, through which no gradient goes back; "
                    "let it give what it inserts as a list (a scan output) instead"
                )
        self.captured = _needed(b)
        rows = len(self.body.inputs) - inputs - states
        self.rows = [at for at in range(rows) if b.needs(first + states + at)]
        lists = len(self.body.outputs) - outputs - states
        self.reported = [at for at in range(lists) if b.has_gradient(states + at)]
        self.carried = self._carried()
        self.drawn = drawn_in(self.body, b.node)
        self.drawn_lists = [self.report(one.value) for one in self.drawn]
        self.copy = self.op.copy(self.body, _prefix(b.node))
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
        with self.op.inside(self.body):
            copy = self.op.Identity(value)
        copy.type, copy.shape = value.type, value.shape
        self.body.outputs.append(copy)
        self.node.resize_outputs(len(self.node.outputs) + 1)
        output = self.node.outputs[-1]
        output.name = self.op.fresh_name(f"{value.name}/rounds")
        output.type = value.type
        if value.shape is not None:
            output.shape = ir.Shape([None, *value.shape])
        return output

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
            _give(self.op, self.copy, outputs)
        _prune(self.copy, *kept)
        self.copy.inputs[:] = inputs


@operator("Loop")
def loop(b: Backward) -> Iterator[ir.Value | NoGradient]:
    """A Loop over the same rounds, the last first; it carries the gradients of the states."""
    op, node = b.op, b.node
    rounds = _Rounds(b, first=2, states=len(node.inputs) - 2, inputs=2, outputs=1)
    copy, n = rounds.copy, rounds.states
    a_list = node.outputs[n] if len(node.outputs) > n else rounds.report(rounds.body.inputs[0])
    times = op.Gather(op.Shape(a_list), 0, axis=0)
    number, runs = list(copy.inputs)[:2]
    with op.inside(copy):
        count, goes_on = (rounds.input(str(value.name), value) for value in (number, runs))
        at = op.Sub(op.Sub(times, 1), count)
        d_lists = {i: op.Gather(b.gradient(n + i), at, axis=0) for i in rounds.reported}
        drawn = [
            _typed(op.Gather(values, at, axis=0), one.value)
            for values, one in zip(rounds.drawn_lists, rounds.drawn, strict=True)
        ]
        found = rounds.differentiate(drawn, d_lists)
        summed = [value for value in rounds.captured if value in found]
        sums = [rounds.input(f"{value.name}/sum", value) for value in summed]
        outputs = [
            op.Identity(goes_on),
            *(rounds.gradient(found, rounds.state_in[i]) for i in rounds.carried),
            *(op.Add(s, found[value]) for s, value in zip(sums, summed, strict=True)),
        ]
        ir.convenience.replace_all_uses_with(number, at)
        ir.convenience.replace_all_uses_with(runs, op.constant(np.array(True)))
    rounds.leave([count, goes_on, *rounds.d_states, *sums], outputs, at)
    with op.inside(copy):
        for before, value in zip(rounds.state_in, rounds.body.inputs[2:], strict=True):
            if before.uses():
                state = _typed(op.Gather(rounds.report(value), at, axis=0), before)
                ir.convenience.replace_all_uses_with(before, state)
    copy.sort()
    _prune(copy)
    starts = [b.gradient(i) for i in rounds.carried]
    zeros = [b.zeros_like(value) for value in summed]
    gradients = op.node("Loop", [times, None, *starts, *zeros], outputs=len(outputs) - 1, body=copy)
    keys: list[int | ir.Value] = [*(2 + i for i in rounds.carried), *summed]
    yield from _answer(b, dict(zip(keys, gradients, strict=True)))


@operator("Scan")
def scan(b: Backward) -> Iterator[ir.Value | NoGradient]:
    """A Scan of the same rows from the other end; it carries the gradients of the states."""
    op, node = b.op, b.node
    count = node.attributes.get_int("num_scan_inputs", 0)
    n = len(node.inputs) - count
    rounds = _Rounds(b, first=0, states=n, inputs=0, outputs=0)
    copy = rounds.copy
    lists = len(rounds.body.outputs) - n - len(rounds.drawn)

    def each(name: str, length: int) -> list[int]:
        return list(node.attributes.get_ints(name, ()) or [0] * length)

    axes, ways = each("scan_input_axes", count), each("scan_input_directions", count)
    list_axes, list_ways = each("scan_output_axes", lists), each("scan_output_directions", lists)
    with op.inside(copy):
        rows = {i: _row(rounds, rounds.body.outputs[n + i]) for i in rounds.reported}
        drawn = [_row(rounds, one.value) for one in rounds.drawn]
        found = rounds.differentiate(drawn, rows)
        summed = [value for value in rounds.captured if value in found]
        sums = [rounds.input(f"{value.name}/sum", value) for value in summed]
        outputs = [
            *(rounds.gradient(found, rounds.state_in[i]) for i in rounds.carried),
            *(op.Add(s, found[value]) for s, value in zip(sums, summed, strict=True)),
            *(rounds.gradient(found, rounds.scanned[i]) for i in rounds.rows),
        ]
    states, scanned = rounds.state_in, rounds.scanned
    rounds.leave([*rounds.d_states, *sums], outputs)
    # What the rounds read: the value that the Scan gets, the row, its axis, and from which end.
    read: list[tuple[ir.Value | None, ir.Value, int, int]] = [
        (rounds.report(value), before, 0, 1)
        for before, value in zip(states, rounds.body.inputs, strict=False)
        if before.uses()
    ]
    read += [
        (node.inputs[n + i], row, axes[i], 1 - ways[i])
        for i, row in enumerate(scanned)
        if row.uses()
    ]
    read += [(b.gradient(n + i), row, list_axes[i], 1 - list_ways[i]) for i, row in rows.items()]
    read += [(v, row, 0, 1) for v, row in zip(rounds.drawn_lists, drawn, strict=True)]
    if not read:
        read = [(node.inputs[n], scanned[0], axes[0], 1 - ways[0])]
    more = len(node.outputs) - n - lists
    node.attributes["scan_output_axes"] = ir.AttrInt64s("scan_output_axes", list_axes + [0] * more)
    node.attributes["scan_output_directions"] = ir.AttrInt64s(
        "scan_output_directions", list_ways + [0] * more
    )
    copy.inputs.extend(row for _, row, _, _ in read)
    starts = [b.gradient(i) for i in rounds.carried]
    zeros = [b.zeros_like(value) for value in summed]
    gradients = op.node(
        "Scan",
        [*starts, *zeros, *(value for value, *_ in read)],
        outputs=len(outputs),
        body=copy,
        num_scan_inputs=len(read),
        scan_input_axes=[axis for *_, axis, _ in read],
        scan_input_directions=[way for *_, way in read],
        scan_output_axes=[axes[i] for i in rounds.rows] or None,
        scan_output_directions=[1 - ways[i] for i in rounds.rows] or None,
    )
    keys: list[int | ir.Value] = [*rounds.carried, *summed, *(n + i for i in rounds.rows)]
    yield from _answer(b, dict(zip(keys, gradients, strict=True)))


def _row(rounds: _Rounds, like: ir.Value) -> ir.Value:
    """A row that the copy gets."""
    return rounds.input(f"{like.name}/row", like)


def _typed(value: ir.Value, like: ir.Value) -> ir.Value:
    value.type, value.shape = like.type, like.shape
    return value
