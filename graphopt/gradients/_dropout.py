"""Dropout: in training mode, or nothing at all."""

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._rewrite import add_outputs, describe, replace


def rewrite_dropout(op: GraphBuilder, node: ir.Node) -> None:
    """Remove one that is not in training mode: its gradient would be scaled all the same."""
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is not None:
        constant = ir.convenience.get_const_tensor(mode)
        if constant is None:
            raise ValueError(
                f"{describe(node)}: its training_mode is not a constant; "
                "export the model with a fixed one"
            )
        if constant.numpy().item():
            add_outputs(op, node, 2)  # the gradient reads the mask
            return
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        raise ValueError(f"{describe(node)}: the mask of a Dropout that drops nothing is read")
    replace(op, node, op.Identity(node.inputs[0]))
