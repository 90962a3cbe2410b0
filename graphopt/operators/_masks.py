"""Attention that a mask leaves nothing to look at, written so that it gives zeros, as in PyTorch.

Softmax of a row of minus infinities is not a number. PyTorch's scaled dot-product attention gives
zeros for such a row, and gradients of zero; its exporters write Softmax, or a mask of the lowest
finite number, under which the row looks at everything.
"""

import math
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.rewriting import reduced

_MASKED = {ir.DataType.FLOAT16: -3e4}
_MASKED_OTHERWISE = -1e30  # as good as minus infinity beside scores, and finite
_DEPTH = 12
_MOVES = {
    *("Cast", "CastLike", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile"),
    *("Transpose", "Trilu", "Unsqueeze"),
}
_BEFORE_PRODUCT = {"Cast", "Dropout", "Identity"}


def rewrite_softmax(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """Of scores plus a mask, in front of a product: zeros for rows that are masked whole."""
    scores = node.inputs[0].producer() if node.inputs[0] is not None else None
    if scores is None or scores.op_type != "Add" or not _is_last(node):
        return
    if any(reader.op_type == "IsNaN" for reader in node.outputs[0].consumers()):
        _mask_by_infinity(op, scores, trained)
        return
    product = _product(node)
    if product is None:
        return
    for index, mask in enumerate(scores.inputs):
        if mask is not None and mask.shape and _may_be_infinite(mask, trained):
            _write(op, node, product, scores, index)
            return


def _is_last(node: ir.Node) -> bool:
    """Whether a row is along the last axis."""
    shape = node.outputs[0].shape
    axis = node.attributes.get_int("axis", -1)
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _mask_by_infinity(op: GraphBuilder, scores: ir.Node, trained: Collection[str]) -> None:
    """Where the result is asked for NaN, rows of the lowest number were meant to be NaN."""
    for index, mask in enumerate(scores.inputs):
        infinite = _infinite(op, mask, trained)
        if infinite is not None:
            scores.replace_input_with(index, infinite)
            return
        choice = None if mask is None else mask.producer()
        if choice is None or choice.op_type != "Where":
            continue
        for branch in (1, 2):
            infinite = _infinite(op, choice.inputs[branch], trained)
            if infinite is not None:
                choice.replace_input_with(branch, infinite)


def _infinite(
    op: GraphBuilder, value: ir.Value | None, trained: Collection[str]
) -> ir.Value | None:
    """A constant in which minus infinity stands for the lowest number, if there is that in it."""
    known = None if value is None else ir.convenience.get_const_tensor(value)
    if known is None or value is None or value.name in trained:
        return None
    if not known.dtype.is_floating_point():
        return None
    numbers = known.numpy()
    is_lowest = numbers == known.dtype.min
    if not is_lowest.any():
        return None
    return op.constant(np.where(is_lowest, np.array(-math.inf, numbers.dtype), numbers))


def _product(node: ir.Node) -> ir.Node | None:
    """The product that alone reads what a node computes."""
    uses = node.outputs[0].uses()
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    (reader, index), *_ = uses
    if index or reader.domain:
        return None
    if reader.op_type == "MatMul":
        return reader
    return _product(reader) if reader.op_type in _BEFORE_PRODUCT else None


def _may_be_infinite(mask: ir.Value, trained: Collection[str], depth: int = _DEPTH) -> bool:
    """Whether a row of a mask may be minus infinity throughout."""
    if mask.name in trained or depth == 0:
        return False
    known = ir.convenience.get_const_tensor(mask)
    if known is not None:
        array = known.numpy()
        is_whole = np.isneginf(array.astype(np.float64)).all(axis=-1 if array.ndim else None)
        return bool(is_whole.any())
    node = mask.producer()
    if node is None:
        return mask.is_graph_input()
    operands = [value for value in node.inputs if value is not None]
    if node.op_type == "Where":
        return any(_has_infinity(value) for value in operands[1:])
    if node.op_type == "Log":
        return True
    if node.op_type in _MOVES:
        return _may_be_infinite(operands[0], trained, depth - 1)
    parts = operands if node.op_type in ("Add", "Concat", "Sum") else []
    return any(_may_be_infinite(value, trained, depth - 1) for value in parts)


def _has_infinity(value: ir.Value) -> bool:
    known = ir.convenience.get_const_tensor(value)
    return known is not None and bool(np.isneginf(known.numpy().astype(np.float64)).any())


def _write(op: GraphBuilder, node: ir.Node, product: ir.Node, scores: ir.Node, index: int) -> None:
    """A finite mask instead, and a product with 0 for the rows that see nothing."""
    mask = scores.inputs[index]
    assert mask is not None
    dtype = mask.dtype or ir.DataType.FLOAT
    lowest = np.array(_MASKED.get(dtype, _MASKED_OTHERWISE), dtype.numpy())
    with op.named(node.name or str(node.outputs[0].name)):
        finite = op.Max(mask, lowest)
        other = scores.inputs[1 - index]
        node.replace_input_with(0, _typed(op.Add(other, finite), scores.outputs[0]))
        highest = reduced(op, "ReduceMax", mask, [-1])
        sees = op.CastLike(op.Greater(highest, -math.inf), product.inputs[1])
        result = product.outputs[0]
        kept = op.Mul(result, sees)
    ir.convenience.replace_all_uses_with(result, _typed(kept, result), replace_graph_outputs=True)
    multiplied = kept.producer()
    assert multiplied is not None
    multiplied.replace_input_with(0, result)
    result.name, kept.name = kept.name, result.name


def _typed(value: ir.Value, like: ir.Value) -> ir.Value:
    value.type, value.shape = like.type, like.shape
    return value
