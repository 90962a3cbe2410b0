"""Rewriting a forward model so that it can be differentiated, exactly.

Each rewrite leaves what the model computes as it is, save one: batch normalization whose scale or
bias is trained normalizes by the statistics of the batch, as training means.
"""

from collections import Counter
from collections.abc import Collection, Sequence

import onnx
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._open import open_model
from graphopt.operators import OPERATORS, of
from graphopt.operators.record import Rewrite
from graphopt.operators.rewriting import RunningStatistic, describe


def prepare(
    proto: onnx.ModelProto, trained: Collection[str]
) -> tuple[ir.Model, list[RunningStatistic]]:
    """A copy of the model that can be differentiated, and its running statistics.

    Args:
        proto: The forward model, which is left as it is.
        trained: The names of the trained parameters.

    Raises:
        ValueError: The model cannot be brought to an opset that the rules know, or an operator
            cannot be rewritten.
    """
    known = {name for name, operator in OPERATORS.items() if operator.is_known}
    return rewritten(open_model(proto, known, trained), trained, rewrite)


def rewritten(
    model: ir.Model, trained: Collection[str], rewrite: Rewrite
) -> tuple[ir.Model, list[RunningStatistic]]:
    """The model, each node of which has been rewritten, and its running statistics."""
    op = GraphBuilder(model.graph)
    statistics: list[RunningStatistic] = []
    for node in list(model.graph):
        statistics += rewrite(op, node, trained) or ()
    model.graph.sort()
    _check_trained(model.graph, trained, statistics)
    return model, statistics


def rewrite(
    op: GraphBuilder, node: ir.Node, trained: Collection[str]
) -> Sequence[RunningStatistic] | None:
    """Rewrite a node as its operator says."""
    of_operator = of(node).rewrite
    return None if of_operator is None else of_operator(op, node, trained)


def _check_trained(
    graph: ir.Graph, trained: Collection[str], statistics: Collection[RunningStatistic]
) -> None:
    """Refuse parameters that cannot be trained because of where they are read."""
    for node in graph.all_nodes():
        if node.graph is graph:
            continue
        for value in node.inputs:
            if value is not None and value.graph is graph and value.name in trained:
                raise ValueError(
                    f"parameter '{value.name}' is read inside a branch or loop ({describe(node)}), "
                    "where it has no gradient; leave it out of the optimizer"
                )
    for name, count in Counter(statistic.name for statistic in statistics).items():
        if name in trained:
            raise ValueError(
                f"parameter '{name}' is a running statistic of batch normalization, which moves "
                "by itself; leave it out of the optimizer"
            )
        if count > 1:
            raise ValueError(
                f"'{name}' is the running statistic of two batch normalizations in training mode; "
                "give each its own"
            )
