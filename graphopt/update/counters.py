"""What a step counts, and the loss scale of the next one."""

from collections.abc import Iterator

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.loss_scale import input_of
from graphopt.rmsprop import RMSProp
from graphopt.state_inputs import state_of
from graphopt.states import (
    ACCUMULATION_COUNT,
    GLOBAL_STEP,
    LOSS_SCALE,
    LOSS_SCALE_STEPS,
    RANDOM_SEED,
    RANDOM_STEP,
    SKIPPED_STEPS,
    State,
)
from graphopt.update.accumulate import Accumulator
from graphopt.update.gate import DeviceGate, Gate


def count_step(
    op: GraphBuilder,
    optimizer: RMSProp,
    gate: Gate | DeviceGate,
    global_step: ir.Value,
    finite: ir.Value | None,
    accumulator: Accumulator | None,
) -> Iterator[tuple[State, ir.Value, ir.Value]]:
    """Append the counters and ``updated``; gives each state with its input and its new value.

    Args:
        op: Appends the nodes, inputs and the output.
        optimizer: Which states there are.
        gate: What the new values wait for.
        global_step: The number of updates before this step.
        finite: Whether all gradients are; None where nobody asks, and every step counts.
        accumulator: Adds gradients up; None where every step is an update.
    """
    done = gate.opened()
    seen = done if finite is None else op.And(done, finite)
    updated = seen if accumulator is None else op.And(seen, accumulator.applies)
    flag = op.output(updated, "updated")
    flag.dtype, flag.shape = ir.DataType.BOOL, ir.Shape([])
    if finite is None and accumulator is None:
        yield GLOBAL_STEP, global_step, gate.after(global_step)
        return
    yield GLOBAL_STEP, global_step, op.Add(global_step, _as_count(op, updated))
    if accumulator is not None:
        yield ACCUMULATION_COUNT, *accumulator.count(seen)
    if (rule := optimizer.dynamic_loss_scale) is not None:
        scale = input_of(op, rule)
        steps = op.input(LOSS_SCALE_STEPS.name, LOSS_SCALE_STEPS.dtype, [])
        new_scale, new_steps = rule.emit(op, scale, steps, seen)
        yield LOSS_SCALE, scale, new_scale
        yield LOSS_SCALE_STEPS, steps, new_steps
    if finite is not None:
        skipped = op.input(SKIPPED_STEPS.name, SKIPPED_STEPS.dtype, [])
        is_good = seen
        if accumulator is not None:
            is_good = op.Or(updated, op.And(seen, op.Not(accumulator.is_last)))
        yield SKIPPED_STEPS, skipped, op.Add(skipped, _as_count(op, op.Not(is_good)))


def count_draws(
    op: GraphBuilder, gate: Gate | DeviceGate
) -> Iterator[tuple[State, ir.Value, ir.Value]]:
    """Append what random numbers are made of in the next step, where the graph draws some.

    Gives each state with its input and its new value. Each step counts, also one without an update,
    so that none has the numbers of another.
    """
    seed, step = (state_of(op.graph, state) for state in (RANDOM_SEED, RANDOM_STEP))
    if seed is not None and step is not None:
        yield RANDOM_SEED, seed, op.Sub(gate.after(seed), 1)
        yield RANDOM_STEP, step, gate.after(step)


def _as_count(op: GraphBuilder, flag: ir.Value) -> ir.Value:
    return op.Cast(flag, to=ir.DataType.INT64)
