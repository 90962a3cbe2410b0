"""What rewrites of the forward model have in common."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.limits import check_memory


@dataclass(frozen=True)
class RunningStatistic:
    """A running mean or variance, which moves towards that of the batch.

    Attributes:
        name: The initializer that holds it.
        batch: The name of the value that holds the statistic of the batch.
        momentum: How much of the old value stays: ``momentum * old + (1 - momentum) * batch``.
        parameter: The trained scale or bias, whose group it belongs to, if there is one.
    """

    name: str
    batch: str
    momentum: float
    parameter: str | None


def describe(node: ir.Node) -> str:
    """How an error names a node."""
    return f"{node.op_type} '{node.name or node.outputs[0].name}'"


def known_rank(node: ir.Node, value: ir.Value | None) -> int:
    """The number of dimensions of an operand, which the rewrite of the node needs.

    Raises:
        ValueError: It is not known.
    """
    if value is None or value.shape is None:
        raise ValueError(
            f"{describe(node)}: the rank of its input is unknown; "
            "declare the shapes of the model's inputs"
        )
    return len(value.shape)


def add_outputs(op: GraphBuilder, node: ir.Node, count: int) -> None:
    """Give a node the optional outputs that its gradient reads."""
    known = len(node.outputs)
    node.resize_outputs(max(count, known))
    for value in node.outputs[known:]:
        value.name = op.fresh_name(f"{node.outputs[0].name}/{node.op_type}")


def replace(op: GraphBuilder, node: ir.Node, *values: ir.Value) -> None:
    """Let values stand for the first outputs of a node, and remove the node."""
    replaced = list(zip(node.outputs, values, strict=False))
    names = [old.name for old, _ in replaced]
    for old, value in replaced:
        value.type, value.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    op.graph.remove(node, safe=True)
    for name, value in zip(names, values, strict=False):
        value.name = name


def take_place(node: ir.Node, values: Sequence[ir.Value]) -> None:
    """Let values of the node's graph be its outputs, and remove it.

    What is known of their own types and shapes counts; of an output of the graph, what is declared.
    """
    graph = node.graph
    assert graph is not None
    for old, value in zip(node.outputs, values, strict=True):
        first, second = (old, value) if old.is_graph_output() else (value, old)
        value.type, value.shape = first.type or second.type, first.shape or second.shape
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        old.name, value.name = value.name, old.name
    graph.remove(node, safe=True)


def stand_for(result: ir.Value, source: ir.Value) -> None:
    """Let a copy of a value have the name and the readers of a result, which nothing reads then."""
    node = result.producer()
    assert node is not None
    assert node.graph is not None
    copy = ir.node("Identity", [source])
    copy.outputs[0].type, copy.outputs[0].shape = result.type, result.shape
    name, result.name = result.name, None
    copy.outputs[0].name = name
    node.graph.insert_before(node, copy)
    ir.convenience.replace_all_uses_with(result, copy.outputs[0], replace_graph_outputs=True)


def mean_over(op: GraphBuilder, x: ir.Value, axes: list[int], *, keepdims: bool) -> ir.Value:
    """The mean over these axes."""
    return reduced(op, "ReduceMean", x, axes, keepdims=keepdims)


def reduced(
    op: GraphBuilder, op_type: str, x: ir.Value, axes: list[int], *, keepdims: bool = True
) -> ir.Value:
    """A reduction over these axes; of all but ReduceSum, they are an input from opset 18 on."""
    reduce: Callable[..., ir.Value] = getattr(op, op_type)
    if op_type == "ReduceSum" or op.opset >= 18:
        return reduce(x, axes, keepdims=int(keepdims))
    return reduce(x, axes=axes, keepdims=int(keepdims))


def rewrite_in_float32(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
    """Of numbers of 16 bits, in float32: only newer opsets and few runtimes have it of them."""
    del trained
    dtype = node.outputs[0].dtype
    if dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return
    operands = [op.Cast(value, to=int(ir.DataType.FLOAT)) for value in node.inputs]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    (result,) = op.node(node.op_type, operands, outputs=1, **attributes)
    replace(op, node, op.Cast(result, to=int(dtype)))


# Sizes: vectors of one, constants where they are known


def size_of(op: GraphBuilder, value: ir.Value, axis: int) -> Operand:
    """The size of an axis of a value whose rank is known."""
    size = None if value.shape is None else value.shape[axis]
    if isinstance(size, int):
        return np.array([size], np.int64)
    return op.Shape(value, start=axis, end=axis + 1)


def concat(op: GraphBuilder, sizes: Sequence[Operand]) -> Operand:
    """Sizes in one vector."""
    constants = [size for size in sizes if isinstance(size, np.ndarray)]
    if len(constants) == len(sizes):
        return np.concatenate([np.zeros(0, np.int64), *constants])
    return op.Concat(*sizes, axis=0)


def product(op: GraphBuilder, sizes: Sequence[Operand]) -> Operand:
    """The product of sizes."""
    vector = concat(op, sizes)
    if isinstance(vector, np.ndarray):
        return np.array([vector.prod()], np.int64)
    return op.ReduceProd(vector)


def numbers_to(op: GraphBuilder, size: Operand) -> Operand:
    """The vector 0, 1, ... of a size.

    Raises:
        ValueError: The size is known, and takes more memory than is allowed.
    """
    if isinstance(size, np.ndarray):
        check_memory(8 * int(size[0]), "an axis of the model")
        return np.arange(int(size[0]))
    return op.Range(np.array(0), op.Squeeze(size, [0]), np.array(1))
