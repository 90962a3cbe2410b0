"""Recurrent layers, unrolled."""

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._rewrite import describe


def rewrite_recurrent(op: GraphBuilder, node: ir.Node) -> None:
    """Replace an LSTM, GRU or RNN by one cell a time step."""
    raise ValueError(f"{describe(node)}: not supported yet")
