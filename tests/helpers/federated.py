"""Models, clients and rounds for federated training."""

import numpy as np
import onnx

import graphopt
from graphopt.federated import ClientUpdate

MODEL = """<ir_version: 8, opset_import: ["": 17]>
two (float[N,3] x) => (float[N,2] y) {
    xw = MatMul (x, "body.weight")
    sum = Add (xw, "body.bias")
    hidden = Tanh (sum)
    y = MatMul (hidden, "head.weight")
}"""
SHAPES = {"body.weight": (3, 4), "body.bias": (4,), "head.weight": (4, 2)}
HEAD = [False, True]
"""The mask with which only the head is trained."""


def initial(seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(shape).astype(np.float32) for n, shape in SHAPES.items()}


def model():
    made = onnx.parser.parse_model(MODEL)
    values = initial()
    made.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in values.items())
    return made


def optimizer(*, groups=True, **settings):
    """Body and head in groups of their own; the server's, or that of a client."""
    made = [graphopt.Parameter(name, shape) for name, shape in SHAPES.items()]
    return graphopt.RMSProp(
        [{"params": made[:2]}, {"params": made[2:]}] if groups else made, **settings
    )


def batches(count, size=4, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "x": rng.standard_normal((size, 3)).astype(np.float32),
            "labels": rng.standard_normal((size, 2)).astype(np.float32),
        }
        for _ in range(count)
    ]


def moved(values, seed, client="a", examples=1, scale=0.1, names=None):
    """What a client could have made of values."""
    rng = np.random.default_rng(seed)
    return ClientUpdate(
        client,
        {
            name: values[name] + (scale * rng.standard_normal(values[name].shape)).astype("f4")
            for name in names or values
        },
        examples,
    )


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


NORMALIZED = """<ir_version: 8, opset_import: ["": 17]>
normalized (float[N,3] x) => (float[N,2] y)
    <float[3,2] w = {1, -2, 3, -4, 5, -6}, float[2] scale = {1, 1}, float[2] bias = {0, 0},
     float[2] mean = {0, 0}, float[2] variance = {1, 1}, float rate = {0.5}, bool yes = {1}>
{
    dropped, kept = Dropout (x, rate, yes)
    xw = MatMul (dropped, w)
    y, new_mean, new_variance =
        BatchNormalization <training_mode = 1> (xw, scale, bias, mean, variance)
}"""


def normalized():
    """A model with Dropout and batch normalization."""
    return onnx.parser.parse_model(NORMALIZED)
