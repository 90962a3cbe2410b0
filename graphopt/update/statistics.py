"""How the running statistics of batch normalization move with each step."""

from collections.abc import Hashable, Sequence

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.rewriting import RunningStatistic
from graphopt.update import functions
from graphopt.update.gate import DeviceGate, Gate


def moved_statistic(
    op: GraphBuilder,
    gate: Gate | DeviceGate,
    statistic: RunningStatistic,
    old: ir.Value,
    batch: ir.Value,
) -> ir.Value:
    """The new value of a running statistic, which is computed in float32.

    Args:
        op: Appends the nodes.
        gate: What must run before it is there.
        statistic: Which one.
        old: Its value, 1-D.
        batch: That of the batch, of the same size and dtype.
    """
    value = gate.flatten(batch)
    narrow = _is_narrow(op, old)
    operands = [old, value]
    if narrow:
        operands = [op.Cast(operand, to=op.real) for operand in operands]
    new = functions.call(op, "MovingAverage", *operands, decay=statistic.momentum)
    return op.Cast(new, to=old.dtype) if narrow else new


def moved_together(
    op: GraphBuilder,
    gate: DeviceGate,
    statistics: Sequence[tuple[RunningStatistic, ir.Value, ir.Value]],
) -> dict[str, ir.Value]:
    """The new values of running statistics, those that move alike by one node.

    Args:
        op: Appends the nodes.
        gate: What must run before they are there.
        statistics: Each with its value and that of the batch.

    Returns:
        The new values, by name.
    """
    alike: dict[Hashable, list[tuple[RunningStatistic, ir.Value, ir.Value]]] = {}
    for number, entry in enumerate(statistics):
        statistic, old, _ = entry
        key: Hashable = (number // functions.MOST_TOGETHER, statistic.momentum)
        if _is_narrow(op, old):
            key = statistic.name
        alike.setdefault(key, []).append(entry)
    moved = {}
    for several in alike.values():
        if _is_narrow(op, several[0][1]):
            ((statistic, old, batch),) = several
            moved[statistic.name] = moved_statistic(op, gate, statistic, old, batch)
            continue
        new = functions.moved_averages(
            op,
            [old for _, old, _ in several],
            [batch for *_, batch in several],
            gate.ready,
            several[0][0].momentum,
        )
        moved |= {entry[0].name: value for entry, value in zip(several, new, strict=True)}
    return moved


def _is_narrow(op: GraphBuilder, statistic: ir.Value) -> bool:
    """Whether it is carried in another dtype than it is computed in."""
    return statistic.dtype is not None and statistic.dtype != op.real
