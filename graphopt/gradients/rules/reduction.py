"""Reductions over axes."""

import onnx_ir as ir

from graphopt.gradients.backward import Backward, rule


@rule("ReduceSum")
def reduce_sum(b: Backward) -> ir.Value:
    axes = reduced_axes(b)
    return b.op.Expand(_with_axes(b, b.dy, axes), b.shape_of(b.x)) if axes else b.dy


@rule("ReduceMean")
def reduce_mean(b: Backward) -> ir.Value:
    axes = reduced_axes(b)
    if not axes:
        return b.dy
    share = b.op.Div(b.dy, b.count(b.x, axes))
    return b.op.Expand(_with_axes(b, share, axes), b.shape_of(b.x))


def reduced_axes(b: Backward) -> list[int]:
    """The axes that a reduction reduces, counted from the front.

    Raises:
        ValueError: They are not known before the graph runs.
    """
    rank = b.rank(b.x)
    axes = b.optional(1)
    if axes is not None:
        known = b.constant(axes)
        if known is None:
            raise b.error(f"its gradient needs the axes, but '{axes.name}' is not a constant")
        given = [int(axis) for axis in known.reshape(-1)]
    else:
        given = list(b.node.attributes.get_ints("axes", ()))
    if not given:
        return [] if b.node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(axis % rank for axis in given)


def _with_axes(b: Backward, value: ir.Value, axes: list[int]) -> ir.Value:
    """A value of the output's shape, with the reduced axes kept as 1."""
    return value if b.node.attributes.get_int("keepdims", 1) else b.op.Unsqueeze(value, axes)
