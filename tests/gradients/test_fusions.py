"""What ONNX Runtime's optimizer would fuse wrongly, where the weights are no constants."""

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

import graphopt
from graphopt import RMSProp, Session
from tests.helpers.gradient_oracle import Case, cases, check, normal

W, V, BATCH = normal(4, 6), normal(4, seed=1), normal(3, 4, 6, seed=2)
TWO = np.float32(2)


def transposed(node, compute=lambda w: w.T, w=W, v=V, **constants):
    """The product of a matrix that comes from ``w`` and a vector, and ``compute`` of ``w``."""
    return Case(
        node,
        {"w": w, "v": v, **constants},
        lambda w, v, *_: compute(w) @ v,
        constants=tuple(constants),
    )


CASES = {
    "a vector on the right": transposed("t = Transpose<perm=[1, 0]>(w) y = MatMul(t, v)"),
    "a vector on the left": Case(
        "t = Transpose<perm=[1, 0]>(w) y = MatMul(v, t)",
        {"v": normal(6), "w": W},
        lambda v, w: v @ w.T,
    ),
    "two vectors": Case("y = MatMul(v, u)", {"v": V, "u": normal(4)}, lambda v, u: v @ u),
    "the default permutation": transposed("t = Transpose(w) y = MatMul(t, v)"),
    "of each of a batch": transposed(
        "t = Transpose<perm=[0, 2, 1]>(w) y = MatMul(t, v)", lambda w: w.mT, BATCH
    ),
    "with another axis in front": transposed(
        "t = Transpose<perm=[1, 2, 0]>(w) y = MatMul(t, v)",
        lambda w: w.permute(1, 2, 0),
        normal(4, 2, 3),
    ),
    "behind an Identity": transposed("t = Transpose(w) i = Identity(t) y = MatMul(i, v)"),
    "behind casts": transposed(
        "d = Cast<to=11>(w) t = Transpose(d) c = Cast<to=1>(t) y = MatMul(c, v)"
    ),
    "behind a factor": transposed(
        "t = Transpose(w) m = Mul(t, two) y = MatMul(m, v)", lambda w: 2 * w.T, two=TWO
    ),
    "before a quotient": transposed(
        "t = Transpose(w) m = MatMul(t, v) y = Div(m, two)", lambda w: w.T / 2, two=TWO
    ),
    "behind a Dropout that drops nothing": transposed(
        "t = Transpose(w) i = Dropout(t) y = MatMul(i, v)"
    ),
    "behind a Reshape that does nothing": transposed(
        "t = Transpose(w) s = Constant<value_ints=[6, 4]>() r = Reshape(t, s) y = MatMul(r, v)"
    ),
    "a bias": transposed("t = Transpose(w) m = MatMul(t, v) y = Add(m, zero)", zero=np.float32(0)),
    # 1.19 loses axes of size 1.
    "a factor with more axes": Case(
        "m = MatMul(w, v) y = Mul(m, c)",
        {"w": normal(6, 4), "v": V, "c": np.full((1, 1), 2, np.float32)},
        lambda w, v, c: (w @ v) * c,
        constants=("c",),
    ),
    "a factor on the left with more axes": Case(
        "m = MatMul(w, u) y = Mul(c, m)",
        {"w": normal(6, 4), "u": W, "c": np.full((1, 1, 1), 2, np.float32)},
        lambda w, u, c: (w @ u) * c,
        constants=("c",),
    ),
    "a divisor with more axes before a product": Case(
        "d = Div(v, c) y = MatMul(d, w)",
        {"v": V, "w": W, "c": np.full((1, 1), 2, np.float32)},
        lambda v, w, c: (v / c) @ w,
        constants=("c",),
    ),
    "a divisor with more axes of a product of vectors": Case(
        "m = MatMul(v, u) y = Div(m, c)",
        {"v": V, "u": normal(4), "c": np.full(1, 2, np.float32)},
        lambda v, u, c: v @ u / c,
        constants=("c",),
    ),
    "a gradient that is folded to one": Case(
        "a = Transpose(x) t = MatMul(w, a) h = Mul(t, half) m = Mul(h, v) y = Mul(m, c)",
        {
            "w": normal(1, 1),
            "v": normal(1, seed=2),
            "x": normal(1, 1, seed=1),
            "half": np.float32(0.5),
            "c": np.full((1, 1), 3, np.float32),
        },
        lambda w, v, x, half, c: half * (w @ x.T) * v * c,
        constants=("half", "c"),
    ),
    # 1.19 takes a transposition that moves nothing for one that does.
    "a Gemm of a transposition that moves nothing": Case(
        "t = Transpose<perm=[0, 1]>(w) y = Gemm(t, u)",
        {"w": normal(4, 4), "u": W},
        lambda w, u: w @ u,
    ),
    "a transposed Gemm": Case(
        "g = Gemm(w, u) y = Transpose<perm=[0, 1]>(g)",
        {"w": normal(4, 4), "u": W},
        lambda w, u: w @ u,
    ),
}


@pytest.mark.quick
@cases(CASES)
def test_gradients(case, dynamic):
    check(case, dynamic)


def parsed(text, w=W):
    """A model with the parameter ``w``."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    return model


def quantile(op, y):
    """A loss that multiplies with a vector too."""
    weights = op.Transpose(op.constant(W), perm=[1, 0])
    rows = op.Mul(weights, op.CastLike(op.ReduceSum(y, keepdims=0), weights))
    return op.ReduceSum(op.MatMul(rows, op.constant(V)), keepdims=0)


def test_the_outputs_and_the_loss_of_a_step():
    model = parsed("m (float[4] v) => (float[6] y) { t = Transpose(w) y = MatMul(t, v) }")
    optimizer = RMSProp(graphopt.parameters(model), learning_rate=1e-9)
    graph = graphopt.training_graph(model, quantile, optimizer)
    outputs = Session(graph).step({"v": V})
    np.testing.assert_allclose(outputs["y"], W.T @ V, rtol=1e-5)
    expected = (W.T @ V).sum(dtype=np.float64) ** 2
    np.testing.assert_allclose(outputs["loss"], expected, rtol=1e-4)
    exported = graph.forward(Session(graph).state)
    assert [node.op_type for node in exported.graph.node] == ["Transpose", "MatMul"]


def test_gradients_that_the_model_computes():
    model = parsed(
        """m (float[4] v, float[6] u) => (float[4,6] g, float loss)
        {
            t = Transpose(w) y = MatMul(t, v) r = Mul(y, u)
            loss = ReduceSum<keepdims=0>(r)
            one = Constant<value_ints=[1]>() nought = Constant<value_ints=[0]>()
            left = Unsqueeze(v, one) right = Unsqueeze(u, nought) g = MatMul(left, right)
        }"""
    )
    optimizer = RMSProp(graphopt.parameters(model), learning_rate=1e-9)
    graph = graphopt.training_graph(model, "loss", optimizer, gradients={"w": "g"})
    u = normal(6, seed=3)
    loss = Session(graph).step({"v": V, "u": u})["loss"]
    np.testing.assert_allclose(loss, (W.T @ V) @ u, rtol=1e-5)


def test_a_rank_that_is_not_known():
    """Beside what is trained; there, the rank must be known."""
    model = parsed(
        """m (float[N,M] a, float v, float[6] x) => (float[6] y, float z)
        { y = Mul(x, w) t = Transpose(a) m = Identity(t) z = MatMul(m, v) }""",
        W[0],
    )
    for value in (model.graph.input[1], model.graph.output[1]):
        value.type.tensor_type.ClearField("shape")
    optimizer = RMSProp(graphopt.parameters(model), learning_rate=1e-9)
    session = Session(graphopt.training_graph(model, "mse", optimizer, loss_output="y"))
    feeds = {"a": W, "x": W[1], "labels": W[1]}
    np.testing.assert_allclose(session.step(feeds | {"v": V})["z"], W.T @ V, rtol=1e-5)
    np.testing.assert_allclose(
        session.step(feeds | {"v": BATCH[0]})["z"], W.T @ BATCH[0], rtol=1e-5, atol=1e-6
    )


def test_a_power_iteration():
    """As a spectral normalization has it: the vector is the result of another product."""
    node = """
        t = Transpose(w) a = MatMul(t, v) n = ReduceL2<keepdims=0>(a) u = Div(a, n)
        p = MatMul(w, u) s = MatMul(v, p) y = Div(w, s)"""

    def compute(w, v):
        u = torch.nn.functional.normalize(w.T @ v, dim=0)
        return w / (v @ (w @ u))

    check(Case(node, {"w": W, "v": V}, compute), dynamic=False)
