"""How the running statistics of batch normalization move with each step."""

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.rewriting import RunningStatistic
from graphopt.update import functions
from graphopt.update.gate import Gate


def moved_statistic(
    op: GraphBuilder, gate: Gate, statistic: RunningStatistic, old: ir.Value, batch: ir.Value
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
    narrow = old.dtype is not None and old.dtype != ir.DataType.FLOAT
    operands = [old, value]
    if narrow:
        operands = [op.Cast(operand, to=ir.DataType.FLOAT) for operand in operands]
    new = functions.call(op, "MovingAverage", *operands, decay=statistic.momentum)
    return op.Cast(new, to=old.dtype) if narrow else new
