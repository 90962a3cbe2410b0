"""Operators that ONNX defines by others, without one of their optional inputs.

The gradients are compared with differences of the loss in float64, by onnx's own evaluator.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import graphopt
from tests.helpers.gradient_oracle import normal


@dataclass(frozen=True)
class Case:
    """A node.

    Attributes:
        node: ONNX text that computes ``y``.
        arrays: Its inputs, all trained.
        opset: Of the model.
        constants: Inputs that are not.
    """

    node: str
    arrays: Mapping[str, np.ndarray]
    opset: int
    constants: tuple[str, ...] = ()


QKV = {name: normal(1, 2, 3, 4, seed=seed) for seed, name in enumerate("qkv")}
PAST = {"pk": normal(1, 2, 5, 4, seed=4), "pv": normal(1, 2, 5, 4, seed=5)}
MASK = {"mask": normal(3, 3, seed=6)}
ROWS = {name: 0.5 * normal(1, 3, 4, seed=seed) for seed, name in enumerate("qkv")}
CASES = {
    "Attention": Case("y = Attention(q, k, v)", QKV, 23),
    "Attention with a mask": Case("y = Attention(q, k, v, mask)", QKV | MASK, 23),
    "Attention with a past": Case("y, a, b = Attention(q, k, v, , pk, pv)", QKV | PAST, 23),
    "Attention 24 with a past": Case("y, a, b = Attention(q, k, v, , pk, pv)", QKV | PAST, 24),
    "Attention without the present": Case(
        "y, , , s = Attention(q, k, v)", QKV, 23),
    "RotaryEmbedding": Case(
        "y = RotaryEmbedding(x, c, s)",
        {"x": normal(1, 2, 3, 4), "c": normal(1, 3, 2, seed=1), "s": normal(1, 3, 2, seed=2)}, 23),
    "RotaryEmbedding with positions": Case(
        "y = RotaryEmbedding(x, c, s, at)",
        {"x": normal(1, 2, 3, 4), "c": normal(6, 2, seed=1), "s": normal(6, 2, seed=2),
         "at": np.array([[4, 0, 2]])}, 23),
    "LinearAttention": Case(
        "y, z = LinearAttention<q_num_heads=2, kv_num_heads=2, update_rule=\"linear\">(q, k, v)",
        ROWS, 27),
    "LinearAttention with a decay": Case(
        "y, z = LinearAttention<q_num_heads=2, kv_num_heads=2, update_rule=\"gated\">"
        "(q, k, v, , d)", ROWS | {"d": -normal(1, 3, 4, seed=3) ** 2}, 27),
    "CausalConvWithState with a state": Case(
        "y, z = CausalConvWithState(x, w, , p)",
        {"x": normal(1, 2, 5), "w": normal(2, 1, 3, seed=1), "p": normal(1, 2, 2, seed=2)}, 27),
    "CausalConvWithState with a bias": Case(
        "y, z = CausalConvWithState(x, w, b)",
        {"x": normal(1, 2, 5), "w": normal(2, 1, 3, seed=1), "b": normal(2, seed=2)}, 27),
    "GroupNormalization": Case(
        "y = GroupNormalization<num_groups=2>(x, s, b)",
        {"x": normal(2, 4, 3), "s": normal(4, seed=1), "b": normal(4, seed=2)}, 21),
}  # fmt: skip


def forward(case, dtype):
    model = onnx.parser.parse_model(
        f'<ir_version: 13, opset_import: ["" : {case.opset}]> m (float[N] unused) => (loss) '
        f"{{ {case.node} t = Tanh(y) loss = ReduceSum<keepdims=0>(t) }}"
    )
    del model.graph.input[:]
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model.graph.output[0].type.tensor_type.elem_type = kind
    model.graph.output[0].type.tensor_type.shape.SetInParent()
    for name, array in case.arrays.items():
        cast = array if array.dtype == np.int64 else array.astype(dtype)
        model.graph.initializer.append(numpy_helper.from_array(cast, name))
    return model


def slopes(case, name, step=0.03):
    """The gradient of an input, by differences of fourth order: parts are computed in float32."""
    evaluator = ReferenceEvaluator(as_function_of(forward(case, np.float64), name))
    array = case.arrays[name].astype(np.float64)
    found = np.empty(array.shape)
    for at in np.ndindex(*array.shape):
        losses = []
        for steps in (-2, -1, 1, 2):
            moved = array.copy()
            moved[at] += steps * step
            losses.append(evaluator.run(None, {name: moved})[0])
        found[at] = np.dot([1, -8, 8, -1], losses) / (12 * step)
    return found


def as_function_of(model, name):
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    model.graph.initializer.remove(tensor)
    info = onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
    model.graph.input.append(info)
    return model


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients(case):
    model = forward(case, np.float32)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), decay=0.0, learning_rate=0.1)
    session = graphopt.Session(graphopt.training_graph(model, "loss", optimizer))
    loss = session.step({})["loss"]
    (expected,) = ReferenceEvaluator(forward(case, np.float64)).run(None, {})
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    for parameter in optimizer.params:
        want = np.abs(slopes(case, parameter.name))
        got = np.sqrt(session.state[f"mean_square.{parameter.name}"])
        np.testing.assert_allclose(
            got, want, rtol=0, atol=3e-4 * want.max(), err_msg=parameter.name
        )
