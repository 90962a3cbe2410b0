"""Rewriting a forward model so that it can be differentiated, exactly.

Each rewrite leaves what the model computes as it is, save one: batch normalization whose scale or
bias is trained normalizes by the statistics of the batch, as training means.
"""

import sys
from collections.abc import Collection, Sequence
from functools import partial, reduce

import onnx
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._inline import wanted_nodes
from graphopt.gradients._open import open_model
from graphopt.half import compute_in_half
from graphopt.operators import OPERATORS, name_of, of
from graphopt.operators.record import Rewrite
from graphopt.operators.recurrent import RECURRENT, rewrite_recurrent
from graphopt.operators.rewriting import RunningStatistic, describe


def prepare(
    proto: onnx.ModelProto,
    trained: Collection[str],
    outputs: Collection[str] | None = None,
    provider: str = "CPUExecutionProvider",
    half: ir.DataType | None = None,
) -> tuple[ir.Model, list[RunningStatistic]]:
    """A copy of the model that can be differentiated, and its running statistics.

    Args:
        proto: The forward model, which is left as it is.
        trained: The names of the trained parameters.
        outputs: The names of the outputs that the loss reads; None for all. What is not between a
            trained parameter and one of these is passed on as it is.
        provider: The execution provider for which formulations are chosen.
        half: The type of 16 bits in which the safe part of a float32 model is computed, if any.

    Raises:
        ValueError: The model cannot be brought to an opset that the rules know, or an operator
            cannot be rewritten.
    """
    known = {name for name, operator in OPERATORS.items() if operator.is_known}
    model = open_model(proto, known, trained, outputs)
    if half is not None:
        compute_in_half(model, half, trained)
    is_cpu = provider == "CPUExecutionProvider"
    return rewritten(model, trained, outputs, rewrite if is_cpu else rewrite_unrolled)


def rewritten(
    model: ir.Model, trained: Collection[str], outputs: Collection[str] | None, rewrite: Rewrite
) -> tuple[ir.Model, list[RunningStatistic]]:
    """The model, in which what a gradient goes through is rewritten, and its running statistics."""
    op = GraphBuilder(model.graph)
    statistics: list[RunningStatistic] = []
    wanted = wanted_nodes(model, trained, outputs)
    for node in list(model.graph.all_nodes()):
        if node not in wanted:
            continue
        graph, name = node.graph, describe(node)
        assert graph is not None
        with op.inside(graph):
            moving = rewrite(op, node, trained) or ()
        if moving and graph is not model.graph:
            raise ValueError(
                f"{name}: its running statistics would move inside a branch or loop, where they "
                "cannot; take it out, or leave its scale and bias out of the optimizer"
            )
        statistics += moving
    for statistic in statistics:
        if statistic.name in trained:
            raise ValueError(
                f"parameter '{statistic.name}' is a running statistic of batch normalization, "
                "which moves by itself; leave it out of the optimizer"
            )
    statistics = _moved_once(op, statistics)
    model.graph.sort()
    return model, statistics


def rewrite(
    op: GraphBuilder, node: ir.Node, trained: Collection[str]
) -> Sequence[RunningStatistic] | None:
    """Rewrite a node as its operator says."""
    of_operator = of(node).rewrite
    return None if of_operator is None else of_operator(op, node, trained)


def rewrite_unrolled(
    op: GraphBuilder, node: ir.Node, trained: Collection[str]
) -> Sequence[RunningStatistic] | None:
    """As `rewrite`, but loops over a known number of steps are unrolled."""
    if name_of(node) in RECURRENT:
        rewrite_recurrent(op, node, trained, sys.maxsize)
        return None
    return rewrite(op, node, trained)


def _moved_once(
    op: GraphBuilder, statistics: Collection[RunningStatistic]
) -> list[RunningStatistic]:
    """Those of a layer that is applied several times as one, which moves it as far in one go.

    With momentum m, then n: n (m r + (1 - m) a) + (1 - n) b = n m r + (1 - n m) c, where
    c = (n (1 - m) a + (1 - n) b) / (1 - n m). They move in the order of the nodes, as in PyTorch.
    """
    alike: dict[str, list[RunningStatistic]] = {}
    for statistic in statistics:
        alike.setdefault(statistic.name, []).append(statistic)
    values: dict[str, ir.Value] = {}
    if len(alike) < len(statistics):
        values = ir.convenience.create_value_mapping(op.graph)
    return [reduce(partial(_moved_by_both, op, values), several) for several in alike.values()]


def _moved_by_both(
    op: GraphBuilder, values: dict[str, ir.Value], first: RunningStatistic, then: RunningStatistic
) -> RunningStatistic:
    momentum = first.momentum * then.momentum
    moves = 1 - momentum
    if not moves:
        return first
    batch = op.Add(
        op.Mul(values[first.batch], then.momentum * (1 - first.momentum) / moves),
        op.Mul(values[then.batch], (1 - then.momentum) / moves),
    )
    values[str(batch.name)] = batch
    parameter = first.parameter or then.parameter
    return RunningStatistic(first.name, str(batch.name), momentum, parameter)
