"""Values that are known before the graph runs, though nodes compute them.

Exporters write axes, shapes and repeats as nodes on constants; rules want to know them.
"""

import math
from collections.abc import Collection, Iterable

import numpy as np
import onnx_ir as ir

from graphopt.graphs import subgraphs
from graphopt.operators import of

_MAX_ELEMENTS = 4096  # shapes and axes, not weights


def propagate_constants(nodes: Iterable[ir.Node], opset: int, trained: Collection[str]) -> bool:
    """Set ``const_value`` of small values that depend on constants and static shapes alone.

    Args:
        nodes: In order; shapes are known as far as they can be.
        opset: The version of their operators.
        trained: Initializers that are no constants.

    Returns:
        Whether there are any that were not known before.
    """
    found = False
    for node in nodes:
        if node.domain or node.op_type == "Constant" or len(node.outputs) != 1:
            continue
        if node.outputs[0].const_value is not None:
            continue
        result = _static_shape(node)
        if result is None:
            result = _cast(node, trained)
        if result is None and _is_evaluated(node, trained):
            result = _evaluate(node, opset)
        if result is not None and result.size <= _MAX_ELEMENTS:
            node.outputs[0].const_value = ir.tensor(result)
            found = True
    return found


def constant_of(value: ir.Value | None, trained: Collection[str]) -> np.ndarray | None:
    """The value of an operand, where it is known before the graph runs, and is not trained."""
    if value is None or value.name in trained:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _static_shape(node: ir.Node) -> np.ndarray | None:
    """What a Shape or a Size computes, where the shape of its input is known."""
    x = node.inputs[0] if node.inputs else None
    if node.op_type not in ("Shape", "Size") or x is None or x.shape is None:
        return None
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(x.shape)) if "end" in node.attributes else None
    sizes = list(x.shape)[start:end]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes):
        return None
    return np.array(known if node.op_type == "Shape" else math.prod(known), np.int64)


def _cast(node: ir.Node, trained: Collection[str]) -> np.ndarray | None:
    """What a CastLike computes, where it is known from what and to which dtype."""
    if node.op_type != "CastLike":
        return None
    known, like = constant_of(node.inputs[0], trained), node.inputs[1]
    if known is None or known.size > _MAX_ELEMENTS or like is None or like.dtype is None:
        return None
    return known.astype(like.dtype.numpy())


def _is_evaluated(node: ir.Node, trained: Collection[str]) -> bool:
    if of(node).is_random or not node.inputs or any(subgraphs(node)):
        return False
    operands = [value for value in node.inputs if value is not None]
    tensors = [ir.convenience.get_const_tensor(value) for value in operands]
    return all(
        tensor is not None and tensor.size <= _MAX_ELEMENTS and value.name not in trained
        for value, tensor in zip(operands, tensors, strict=True)
    )


def _evaluate(node: ir.Node, opset: int) -> np.ndarray | None:
    from onnx.reference import ReferenceEvaluator  # slow to import, and seldom needed

    feeds = {
        str(value.name): tensor.numpy()
        for value in node.inputs
        if value is not None and (tensor := ir.convenience.get_const_tensor(value)) is not None
    }
    try:
        (result,) = ReferenceEvaluator(ir.serde.serialize_node(node), opsets={"": opset}).run(
            None, feeds
        )
    except Exception:  # noqa: BLE001 - then it is left to the running graph
        return None
    return np.asarray(result)
