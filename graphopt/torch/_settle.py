"""Operators of PyTorch that ONNX has too, but not with the same gradient."""

from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from graphopt.torch._errors import line_of
from graphopt.torch._no_gradient import STOP
from graphopt.torch._nodes import call, replace

aten = torch.ops.aten


def settle(program: ExportedProgram) -> None:
    """Write them out with operators that have it.

    Raises:
        ValueError: It cannot be written out.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is aten.embedding.default:
            _embedding(graph, node)
        elif node.target is aten.view.default:
            # The exporter lays tensors out otherwise, so that no view may be possible.
            node.target = aten.reshape.default
    program.graph_module.recompile()


def _embedding(graph: Graph, node: Node) -> None:
    """The row of ``padding_idx`` gets no gradient."""
    weight, indices, padding, by_frequency, *_ = (*cast(tuple[Any, ...], node.args), -1, False)
    if by_frequency is True:
        where = line_of(node.meta.get("stack_trace"))
        raise ValueError(
            f"an embedding has scale_grad_by_freq=True{where}, which the exported model would not "
            "have; leave it out"
        )
    if len(node.args) < 3 or padding < 0:
        return
    with graph.inserting_before(node):
        rows = call(graph, node, aten.embedding.default, weight, indices)
        column = call(graph, node, aten.unsqueeze.default, indices, -1)
        is_padding = call(graph, node, aten.eq.Scalar, column, padding)
        still = call(graph, node, STOP, rows, "padding_idx")
        result = call(graph, node, aten.where.self, is_padding, still, rows)
    replace(graph, node, result)
