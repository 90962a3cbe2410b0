"""Operators of ``ai.onnx.ml``."""

import onnx_ir as ir

from graphopt.shapes.node import Node
from graphopt.shapes.sizes import Dim, known, plus, product
from graphopt.shapes.values import FLOAT, INT64, NO_DTYPE, TensorInfo, tensor


def floats(node: Node) -> list[TensorInfo]:
    """The shape of the first input, in float32."""
    return [tensor(FLOAT, node.input(0).shape)]


def same(node: Node) -> list[TensorInfo]:
    """The shape and dtype of the first input."""
    first = node.input(0)
    return [tensor(first.dtype, first.shape)]


def _rows(node: Node) -> Dim:
    """A vector is one row."""
    shape = node.shape()
    return shape[0] if len(shape) > 1 else 1


def regression(node: Node) -> list[TensorInfo]:
    """A number for each row and target."""
    targets = node.attributes.integer("targets", node.attributes.integer("n_targets", 1))
    dtype = node.input(0).dtype if node.op_type.endswith("TreeEnsemble") else FLOAT
    return [tensor(dtype, (_rows(node), targets))]


def classification(node: Node) -> list[TensorInfo]:
    """A class for each row, and a number for each row and class."""
    integers = node.attributes.count("classlabels_ints") or node.attributes.count(
        "classlabels_int64s"
    )
    count: Dim = integers or None
    dtype = INT64 if integers else ir.DataType.STRING
    rows = _rows(node)
    return [tensor(dtype, (rows,)), tensor(FLOAT, (rows, count))]


def mapped(node: Node) -> list[TensorInfo]:
    """The shape of the first input, in the dtype of the values."""
    attributes = node.attributes
    dtype = NO_DTYPE
    if "values_int64s" in attributes:
        dtype = INT64
    elif "values_floats" in attributes:
        dtype = FLOAT
    elif "values_strings" in attributes:
        dtype = ir.DataType.STRING
    elif (values := attributes.tensor("values_tensor")) is not None:
        dtype = values.dtype
    return [tensor(dtype, node.input(0).shape)]


def one_hot(node: Node) -> list[TensorInfo]:
    """An axis more, as long as there are categories."""
    count = node.attributes.count("cats_int64s") or None
    return [tensor(FLOAT, (*node.shape(), count))]


def picked(node: Node) -> list[TensorInfo]:
    """As many elements of the last axis as there are indices."""
    shape = node.shape()
    rest = shape[:-1] if len(shape) > 1 else (1,)
    return [tensor(node.input(0).dtype, (*rest, product(*node.shape(1))))]


def beside(node: Node) -> list[TensorInfo]:
    """All columns."""
    columns: Dim = 0
    for index in range(len(node.inputs)):
        size = known(node.shape(index)[-1])
        columns = None if columns is None or size is None else plus(columns, size)
    return [tensor(FLOAT, (_rows(node), columns))]
