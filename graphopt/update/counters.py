"""What a step counts, and the loss scale of the next one."""

from collections.abc import Iterator

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.loss_scale import input_of
from graphopt.rmsprop import RMSProp
from graphopt.states import GLOBAL_STEP, LOSS_SCALE, LOSS_SCALE_STEPS, SKIPPED_STEPS, State
from graphopt.update.gate import DeviceGate, Gate


def count_step(
    op: GraphBuilder,
    optimizer: RMSProp,
    gate: Gate | DeviceGate,
    global_step: ir.Value,
    updated: ir.Value,
    *,
    may_skip: bool,
) -> Iterator[tuple[State, ir.Value, ir.Value]]:
    """Append the counters; gives each state of the graph with its input and its new value.

    Args:
        op: Appends the nodes, and inputs.
        optimizer: Which states there are.
        gate: What the new values wait for.
        global_step: The number of updates before this step.
        updated: Whether this one is an update, which is not known before the gate opens.
        may_skip: Whether a step may be none.
    """
    if not may_skip:
        yield GLOBAL_STEP, global_step, gate.after(global_step)
        return
    yield GLOBAL_STEP, global_step, op.Add(global_step, _as_count(op, updated))
    if (rule := optimizer.dynamic_loss_scale) is not None:
        scale = input_of(op, rule)
        steps = op.input(LOSS_SCALE_STEPS.name, LOSS_SCALE_STEPS.dtype, [])
        new_scale, new_steps = rule.emit(op, scale, steps, updated)
        yield LOSS_SCALE, scale, new_scale
        yield LOSS_SCALE_STEPS, steps, new_steps
    skipped = op.input(SKIPPED_STEPS.name, SKIPPED_STEPS.dtype, [])
    yield SKIPPED_STEPS, skipped, op.Add(skipped, _as_count(op, op.Not(updated)))


def _as_count(op: GraphBuilder, flag: ir.Value) -> ir.Value:
    return op.Cast(flag, to=ir.DataType.INT64)
