"""Dropout: in training mode, or nothing at all."""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.backward import Backward
from graphopt.operators.record import Moves, operator
from graphopt.operators.rewriting import add_outputs, describe, replace
from graphopt.shapes import elements


def rewrite_dropout(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """Remove one that is not in training mode: its gradient would be scaled all the same."""
    del trained
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
    values = [op.Identity(node.inputs[0])]
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        kept = ir.tensor(np.ones(1, np.bool_))
        values.append(op.ConstantOfShape(op.Shape(node.inputs[0]), value=kept))
    replace(op, node, *values)


def drop_nothing(node: ir.Node) -> bool:
    """Take it out of training mode; whether it was in it. A mode that is fed stays as it is."""
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    constant = None if mode is None else ir.convenience.get_const_tensor(mode)
    if constant is None:
        return False
    node.resize_inputs(2)
    return bool(constant.numpy().item())


def constant_ratio(node: ir.Node) -> float | None:
    """The ratio of a Dropout that has inputs up to its mode, or None if it is computed or fed.

    Raises:
        ValueError: It is out of range.
    """
    ratio = node.inputs[1]
    if ratio is None:
        return 0.5
    constant = ir.convenience.get_const_tensor(ratio)
    if constant is None:
        return None
    number = float(constant.numpy().item())
    if not 0 <= number < 1:
        raise ValueError(
            f"{describe(node)}: its ratio is {number:g}, expected at least 0 and less than 1: ONNX "
            "Runtime does not compute others"
        )
    return number


@operator(
    "Dropout",
    rewrite=rewrite_dropout,
    infer=drop_nothing,
    moves=Moves.AT_TIMES,
    settings=(1,),
    is_random=True,
    flops=1,
    shape=elements.dropout,
)
def dropout(b: Backward) -> ir.Value:
    """dx = dy mask / (1 - ratio)."""
    ratio, known = b.optional(1), constant_ratio(b.node)
    kept = b.masked(b.dy, b.outputs[1])
    if known is not None:
        return b.op.Mul(kept, 1.0 / (1.0 - known))
    assert ratio is not None
    return b.op.Div(kept, b.op.Sub(1.0, b.op.CastLike(ratio, b.dy)))
