"""A cross entropy that stands in the forward model itself."""

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.labels import checked_labels


def rewrite_cross_entropy(op: GraphBuilder, node: ir.Node) -> None:
    """Check its labels."""
    logits, labels = node.inputs[:2]
    assert logits is not None
    assert labels is not None
    ignored = node.attributes.get_int("ignore_index") if "ignore_index" in node.attributes else None
    node.replace_input_with(1, checked_labels(op, logits, labels, ignored))
