"""Dropout that an exporter has written out: a random mask of zeros and ones, times a factor.

Also that of whole channels or samples, which ONNX has no operator for.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.operators import Moves, of
from graphopt.operators.rewriting import describe, stand_for

_UNIFORM = {"RandomUniform", "RandomUniformLike"}
_LESS = {"Less", "LessOrEqual"}
_GREATER = {"Greater", "GreaterOrEqual"}
_SAME_MASK = {"Cast", "CastLike", "Identity"}
_EXACT = 1e-5  # factors are rounded to float32, or to float16 before


def remove_written_dropout(graph: ir.Graph) -> bool:
    """Let what written out Dropout multiplies stand for its result; whether there was any.

    With a mask that is 1 with probability p, ``x * mask / p`` becomes ``x``.

    Raises:
        ValueError: A random mask is used in another way.
    """
    masks = [found for node in graph.all_nodes() if (found := _mask(node)) is not None]
    for node, mask, probability in masks:
        if probability is None:
            raise ValueError(_refusal(node))
        _remove(node, mask, probability)
    return bool(masks)


def random_masks(graph: ir.Graph) -> list[ir.Value]:
    """The masks of zeros and ones that a graph draws, those of Dropout nodes left aside."""
    return [mask for node in graph.all_nodes() if (found := _mask(node)) for mask in found[1:2]]


def _refusal(node: ir.Node) -> str:
    return (
        f"{describe(node)} draws a random mask that is no Dropout as far as the graph tells, so "
        "what the model computes outside training is not known"
    )


def _mask(node: ir.Node) -> tuple[ir.Node, ir.Value, float | None] | None:
    """A node that draws, the mask of zeros and ones that it becomes, and the share of ones."""
    if node.domain or not node.outputs:
        return None
    y = node.outputs[0]
    if node.op_type == "Bernoulli":
        probabilities = _constant(node.inputs[0])
        same = probabilities is not None and np.ptp(probabilities) == 0 and probabilities.size
        return node, y, float(probabilities.flat[0]) if same and probabilities is not None else None
    if node.op_type not in _UNIFORM or not _is_unit(node):
        return None
    for reader in y.consumers():
        index = 0 if reader.inputs[0] is y else 1
        bound = _number(reader.inputs[1 - index]) if len(reader.inputs) == 2 else None
        if reader.op_type in _LESS | _GREATER:
            below = (reader.op_type in _LESS) == (index == 0)
            share = bound if below or bound is None else 1 - bound
            return node, reader.outputs[0], share
        if reader.op_type == "Add":  # what is above 1 - bound becomes 1
            for floor in reader.outputs[0].consumers():
                if floor.op_type == "Floor":
                    return node, floor.outputs[0], bound
    return None


def _is_unit(node: ir.Node) -> bool:
    low, high = node.attributes.get_float("low", 0.0), node.attributes.get_float("high", 1.0)
    return (low, high) == (0.0, 1.0)


def _remove(node: ir.Node, mask: ir.Value, probability: float) -> None:
    products = list(_products(mask, probability))
    if not products or not probability:
        raise ValueError(_refusal(node))
    for product, other, factor in products:
        replaced = _scaled(product, other, factor)
        if replaced is None:
            raise ValueError(_refusal(node))
        result, source = replaced
        stand_for(result, source)


def _products(mask: ir.Value, factor: float) -> Iterator[tuple[ir.Node, ir.Value | None, float]]:
    """Where a tensor is multiplied by a mask, and the mean of the mask there.

    Another use of a mask is one without such a tensor.
    """
    if mask.is_graph_output():
        yield _producer(mask), None, factor
    for use in mask.uses():
        reader, other = use.node, None
        if len(reader.inputs) == 2 and reader.op_type in ("Mul", "Div"):
            other = reader.inputs[1 - use.idx]
        number = _number(other)
        passes = reader.op_type in _SAME_MASK or of(reader).moves is Moves.SHAPE
        if (passes and use.idx == 0) or (reader.op_type == "Expand" and use.idx == 0):
            yield from _products(reader.outputs[0], factor)
        elif reader.op_type == "CastLike":
            continue  # which reads the dtype alone
        elif number is not None and (reader.op_type == "Mul" or use.idx == 0):
            scaled = factor * number if reader.op_type == "Mul" else factor / number
            yield from _products(reader.outputs[0], scaled)
        elif reader.op_type == "Where" and use.idx == 0 and _number(reader.inputs[2]) == 0:
            yield reader, reader.inputs[1], factor
        else:
            yield reader, other if reader.op_type == "Mul" else None, factor


def _scaled(
    product: ir.Node, other: ir.Value | None, factor: float
) -> tuple[ir.Value, ir.Value] | None:
    """The result of a product whose mean is one of its operands, and that operand."""
    result = product.outputs[0]
    if other is None or (
        result.shape is not None and other.shape is not None and result.shape != other.shape
    ):
        return None
    if _is_one(factor):
        return result, other
    before = other.producer()
    if before is not None and (found := _times_number(before, other)) is not None:
        source, number = found
        if _is_one(factor * number):
            return result, source
    uses = list(result.uses())
    if len(uses) == 1 and not result.is_graph_output():
        after = uses[0].node
        found = _times_number(after, after.outputs[0])
        if found is not None and found[0] is result and _is_one(factor * found[1]):
            return after.outputs[0], other
    return None


def _times_number(node: ir.Node, result: ir.Value) -> tuple[ir.Value, float] | None:
    """A tensor and the number by which it is multiplied, if that is what a node does."""
    if node.op_type not in ("Mul", "Div") or node.domain or result is not node.outputs[0]:
        return None
    for index in (0, 1) if node.op_type == "Mul" else (1,):
        source, number = node.inputs[1 - index], _number(node.inputs[index])
        if source is not None and number:
            return source, number if node.op_type == "Mul" else 1 / number
    return None


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _is_one(factor: float) -> bool:
    return abs(factor - 1) < _EXACT


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """The values of a constant, also of one in another dtype."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type in _SAME_MASK:
        return _constant(node.inputs[0])
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _number(value: ir.Value | None) -> float | None:
    array = _constant(value)
    return None if array is None or array.size != 1 else float(array.item())
