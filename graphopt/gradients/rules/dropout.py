"""Dropout in training mode."""

import onnx_ir as ir

from graphopt.gradients.backward import Backward, rule


@rule("Dropout")
def dropout(b: Backward) -> ir.Value:
    """dx = dy mask / (1 - ratio)."""
    ratio = b.optional(1)
    known = None if ratio is None else b.constant(ratio)
    if known is not None and not 0 <= known.item() < 1:
        raise b.error(
            f"its ratio is {known.item():g}, expected at least 0 and less than 1: ONNX Runtime "
            "does not compute others"
        )
    kept = b.masked(b.dy, b.outputs[1])
    if ratio is None:
        return b.op.Mul(kept, 2.0)
    if known is not None:
        return b.op.Mul(kept, 1.0 / (1.0 - float(known.item())))
    return b.op.Div(kept, b.op.Sub(1.0, b.op.CastLike(ratio, b.dy)))
