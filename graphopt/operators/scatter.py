"""Operators that write elements to indices, or combine them with what is there."""

from collections.abc import Collection, Sequence

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators._scatter import scatter_add, scatter_reduced, scatter_rows
from graphopt.operators.backward import Backward
from graphopt.operators.record import operator
from graphopt.operators.rewriting import known_rank, numbers_to, replace, size_of
from graphopt.shapes import elements

_REDUCTION = "reduction"


@operator("ScatterElements", flops=0, shape=elements.same)
def scatter_elements(b: Backward) -> Sequence[ir.Value | None]:
    """By reduction, where t is all that meets at one place: an element of the data and its updates.

    none: the update; where indices repeat, each gets the gradient, as with PyTorch.
    add: the gradient, for each of t.
    mul: dy times the product of the others of t, also where some are 0.
    max, min: those of t that are equal to the result share the gradient evenly, as with PyTorch.
    """
    axis, indices, updates = b.axis(b.x, 0), b.input(1), b.input(2)
    reduction = b.node.attributes.get_string(_REDUCTION, "none")
    if reduction in ("none", "add"):
        d_updates = b.op.GatherElements(b.dy, indices, axis=axis)
        if reduction == "add":
            return [b.dy, None, d_updates]
        nothing = b.zeros_like(updates)
        return [b.op.ScatterElements(b.dy, indices, nothing, axis=axis), None, d_updates]
    return _of_product(b, axis) if reduction == "mul" else _of_extremum(b, axis)


def _of_product(b: Backward, axis: int) -> Sequence[ir.Value | None]:
    """With the product of those that are not 0, and the number of zeros beside an element."""
    op, dy, indices = b.op, b.dy, b.input(1)
    operands = (b.x, b.input(2))
    is_zero = [op.CastLike(op.Equal(value, 0.0), value) for value in operands]
    rest = [op.Add(value, zero) for value, zero in zip(operands, is_zero, strict=True)]
    product = scatter_reduced(op, rest[0], indices, rest[1], axis, "mul")
    zeros = scatter_add(b, is_zero[0], indices, is_zero[1], axis)
    gradients = []
    for at, (zero, factor) in enumerate(zip(is_zero, rest, strict=True)):
        here = [value if at == 0 else op.GatherElements(value, indices, axis=axis)
                for value in (dy, product, zeros)]  # fmt: skip
        others = op.Div(op.Mul(here[0], here[1]), factor)
        # A choice, not a product: the product of the rest may overflow.
        gradients.append(op.Where(op.Equal(here[2], zero), others, 0.0))
    return [gradients[0], None, gradients[1]]


def _of_extremum(b: Backward, axis: int) -> Sequence[ir.Value | None]:
    op, indices = b.op, b.input(1)
    is_kept = op.Equal(b.x, b.y)
    is_taken = op.Equal(b.input(2), op.GatherElements(b.y, indices, axis=axis))
    counted = [op.CastLike(equal, b.x) for equal in (is_kept, is_taken)]
    share = op.Div(b.dy, scatter_add(b, counted[0], indices, counted[1], axis))
    d_updates = op.GatherElements(share, indices, axis=axis)
    return [b.masked(share, is_kept), None, b.masked(d_updates, is_taken)]


def rewrite_scatter_nd(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """By ScatterElements, where ONNX Runtime would combine from several threads at once."""
    del trained
    data, indices, updates = node.inputs[:3]
    if node.attributes.get_string(_REDUCTION, "none") == "none":
        return
    if data is None or indices is None or updates is None:
        return
    depth = indices.shape[-1] if indices.shape else None
    if data.shape is None or not isinstance(depth, int):
        return
    reduction = node.attributes.get_string(_REDUCTION, "none")
    replace(op, node, scatter_rows(op, data, indices, updates, depth, reduction))


@operator("ScatterND", rewrite=rewrite_scatter_nd, flops=0, shape=elements.same)
def scatter_nd(b: Backward) -> Sequence[ir.Value | None]:
    """Where indices repeat, each update gets the gradient, as with PyTorch."""
    if b.node.attributes.get_string(_REDUCTION, "none") != "none":
        raise b.error(
            "with a reduction, it needs the rank of its data and the number of indices in a tuple; "
            "declare the shapes of the model's inputs"
        )
    indices, updates = b.input(1), b.input(2)
    d_updates = b.op.GatherND(b.dy, indices)
    return [b.op.ScatterND(b.dy, indices, b.zeros_like(updates)), None, d_updates]


def rewrite_tensor_scatter(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """By ScatterElements, at indices that count on from the first one of each sample.

    Raises:
        ValueError: The rank of the updates is not known.
    """
    del trained
    past, update, first = [*node.inputs, None][:3]
    rank = known_rank(node, update)
    assert past is not None
    assert update is not None
    axis = node.attributes.get_int("axis", -2) % rank
    along = [-1 if at == axis else 1 for at in range(rank)]
    with op.named(node.name or str(node.outputs[0].name)):
        indices = op.Reshape(numbers_to(op, size_of(op, update, axis)), along)
        if first is not None:
            first = op.Cast(first, to=int(ir.DataType.INT64))
            indices = op.Add(indices, op.Reshape(first, [-1] + [1] * (rank - 1)))
        if node.attributes.get_string("mode", "linear") == "circular":
            indices = op.Mod(indices, size_of(op, past, axis))
        indices = op.Expand(indices, op.Shape(update))
        replace(op, node, op.ScatterElements(past, indices, update, axis=axis))


operator("TensorScatter", rewrite=rewrite_tensor_scatter, flops=0, shape=elements.same)
