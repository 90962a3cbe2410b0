"""Operators of ``ai.onnx.ml``, with which tables are prepared for a network.

Those that are smooth are written in ONNX's own operators: what lies before them can be trained,
and the graph runs where the domain is not known. Their numbers are attributes, which are not
trained.
"""

from collections.abc import Callable, Collection
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.record import ZERO, operator
from graphopt.operators.rewriting import describe, known_rank, reduced, replace
from graphopt.shapes import preprocessing as shapes

_DOMAIN = "ai.onnx.ml"
_Result = Callable[[GraphBuilder, ir.Node], ir.Value]


def _written(result: _Result) -> Callable[[GraphBuilder, ir.Node, Collection[str]], None]:
    """A rewrite that lets what a function gives stand for the first output."""

    def rewrite(op: GraphBuilder, node: ir.Node, trained: Collection[str]) -> None:
        del trained
        replace(op, node, result(op, node))

    return rewrite


def _input(op: GraphBuilder, node: ir.Node, index: int = 0) -> ir.Value:
    """An input in float32, which the results are."""
    x = node.inputs[index]
    assert x is not None
    return x if x.dtype == ir.DataType.FLOAT else op.Cast(x, to=int(ir.DataType.FLOAT))


def _floats(node: ir.Node, name: str) -> np.ndarray:
    return np.array(node.attributes.get_floats(name, ()), np.float32)


def scaler(op: GraphBuilder, node: ir.Node) -> ir.Value:
    """(x - offset) scale."""
    x = _input(op, node)
    offset, scale = _floats(node, "offset"), _floats(node, "scale")
    if offset.size:
        x = op.Sub(x, offset)
    return op.Mul(x, scale) if scale.size else op.Identity(x)


def normalizer(op: GraphBuilder, node: ir.Node) -> ir.Value:
    """X over its largest element, the sum of the absolute ones, or its length; x where that is 0.

    Where several elements are the largest, they share its gradient; the length of zeros has none.
    """
    x = _input(op, node)
    axis = min(known_rank(node, node.inputs[0]) - 1, 1)
    kinds = {"MAX": "ReduceMax", "L1": "ReduceL1", "L2": "ReduceL2"}
    norm = kinds[node.attributes.get_string("norm", "MAX")]
    size = reduced(op, norm, x, [axis])
    size.type = x.type
    return op.Div(x, op.Where(op.Equal(size, 0.0), 1.0, size))


def linear_regressor(op: GraphBuilder, node: ir.Node) -> ir.Value:
    """X Wᵀ + b, then the transform of the result."""
    x = _input(op, node)
    if known_rank(node, node.inputs[0]) == 1:
        x = op.Unsqueeze(x, [0])
    targets = node.attributes.get_int("targets", 1)
    weight, bias = _floats(node, "coefficients"), _floats(node, "intercepts")
    y = op.MatMul(x, np.ascontiguousarray(weight.reshape(targets, -1).T))
    if bias.size:
        y = op.Add(y, bias)
    transform = node.attributes.get_string("post_transform", "NONE")
    if transform == "NONE":
        return y
    if transform == "LOGISTIC":
        return op.Sigmoid(y)
    if transform == "SOFTMAX":
        return op.Softmax(y, axis=-1)
    raise ValueError(
        f"{describe(node)}: post_transform '{transform}' is not known, only NONE, LOGISTIC and "
        "SOFTMAX are; write it as MatMul, Add and what transforms the result"
    )


def imputer(op: GraphBuilder, node: ir.Node) -> ir.Value:
    """X, but for the elements that stand for a missing one."""
    x = node.inputs[0]
    assert x is not None
    is_float = x.dtype is not None and x.dtype.is_floating_point()
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    if is_float:
        missing = node.attributes.get_float("replaced_value_float", 0.0)
        instead = _floats(node, "imputed_value_floats").astype(dtype)
    else:
        missing = node.attributes.get_int("replaced_value_int64", 0)
        instead = np.array(node.attributes.get_ints("imputed_value_int64s", ()), dtype)
    is_missing = op.IsNaN(x) if np.isnan(missing) else op.Equal(x, np.array(missing, dtype))
    return op.Where(is_missing, instead, x)


def array_feature_extractor(op: GraphBuilder, node: ir.Node) -> ir.Value:
    """The elements of the last axis at indices."""
    x, indices = node.inputs[:2]
    rank = known_rank(node, x)
    picked = op.Gather(x, op.Reshape(indices, [-1]), axis=rank - 1)
    return op.Unsqueeze(picked, [0]) if rank == 1 else picked


def feature_vectorizer(op: GraphBuilder, node: ir.Node) -> ir.Value:
    """All inputs beside each other."""
    columns = []
    for index, value in enumerate(node.inputs):
        column = _input(op, node, index)
        columns.append(op.Unsqueeze(column, [0]) if known_rank(node, value) == 1 else column)
    return op.Concat(*columns, axis=1)


_recorded = partial(operator, domain=_DOMAIN)

_recorded("Scaler", rewrite=_written(scaler), flops=2, shape=shapes.floats)
_recorded("Normalizer", rewrite=_written(normalizer), flops=3, shape=shapes.floats)
_recorded("LinearRegressor", rewrite=_written(linear_regressor), shape=shapes.regression)
_recorded("Imputer", rewrite=_written(imputer), flops=0, shape=shapes.same)
_recorded(
    "ArrayFeatureExtractor", rewrite=_written(array_feature_extractor), flops=0, shape=shapes.picked
)
_recorded("FeatureVectorizer", rewrite=_written(feature_vectorizer), flops=0, shape=shapes.beside)

_constant = partial(_recorded, gradient=ZERO, flops=0)

_constant("Binarizer", shape=shapes.same)
_constant("CategoryMapper", shape=shapes.mapped)
_constant("LabelEncoder", shape=shapes.mapped)
_constant("OneHotEncoder", shape=shapes.one_hot)
_constant("TreeEnsembleRegressor", shape=shapes.regression)
_constant("TreeEnsembleClassifier", shape=shapes.classification)
_constant("TreeEnsemble", shape=shapes.regression)

_recorded("LinearClassifier", shape=shapes.classification)
_recorded("SVMClassifier", shape=shapes.classification)
_recorded("SVMRegressor", shape=shapes.regression)
