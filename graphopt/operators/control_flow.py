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
from graphopt.operators._rounds import Rounds, answer, give, needed, prefix, prune
from graphopt.operators.backward import Backward
from graphopt.operators.record import NoGradient, operator

# Branches ------------------------------------------------------------------------------------


@operator("If")
def branches(b: Backward) -> Iterator[ir.Value | NoGradient]:
    """An If of the same condition, whose branches give the gradients of what the branches read."""
    op, node = b.op, b.node
    wanted = needed(b)
    names = ("then_branch", "else_branch")
    drawn = {name: drawn_in(node.attributes[name].as_graph(), node) for name in names}
    reported = _report_from_branches(op, node, drawn)
    backward: dict[str, Any] = {}
    for name in names:
        copy = op.copy(node.attributes[name].as_graph(), f"{prefix(node)}/{name}")
        with op.inside(copy):
            use_drawn(op, copy, drawn[name], reported[name])
            seeds = {
                value: b.gradient(index)
                for index, value in enumerate(copy.outputs)
                if b.has_gradient(index)
            }
            found = b.differentiate(copy, wanted, seeds)
            give(op, copy, [found.get(v) or b.zeros_like(v) for v in wanted])
        prune(copy)
        backward[name] = copy
    gradients = op.node("If", [b.x], outputs=len(wanted), **backward)
    yield from answer(b, dict(zip(wanted, gradients, strict=True)))


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


@operator("Loop")
def loop(b: Backward) -> Iterator[ir.Value | NoGradient]:
    """A Loop over the same rounds, the last first; it carries the gradients of the states."""
    op, node = b.op, b.node
    rounds = Rounds(b, first=2, states=len(node.inputs) - 2, inputs=2, outputs=1)
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
    prune(copy)
    starts = [b.gradient(i) for i in rounds.carried]
    zeros = [b.zeros_like(value) for value in summed]
    gradients = op.node("Loop", [times, None, *starts, *zeros], outputs=len(outputs) - 1, body=copy)
    keys: list[int | ir.Value] = [*(2 + i for i in rounds.carried), *summed]
    yield from answer(b, dict(zip(keys, gradients, strict=True)))


def _typed(value: ir.Value, like: ir.Value) -> ir.Value:
    value.type, value.shape = like.type, like.shape
    return value
