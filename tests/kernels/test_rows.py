"""The kernels of gradients of Softmax, LayerNormalization, Gelu and Swish, against NumPy."""

import numpy as np
import onnx
import pytest
from scipy import special

import graphopt
from tests.helpers.environments import needs_kernels
from tests.helpers.kernel_sessions import (
    kernels_of_same_training,
    of_one_node,
    run_one_node,
    run_over_the_first,
)

pytestmark = needs_kernels

SHAPES = [
    (1,),
    (3, 1),
    (5, 7),
    (2, 3, 8),
    (2, 5, 16),
    (4, 33),
    (300, 130),
    (2, 4, 64, 257),
    (2,) * 11,
]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax(shape, threads):
    dy, y = normal(*shape), special.softmax(normal(*shape, seed=1), axis=-1)
    got = run_one_node("SoftmaxGradient2", {"dy": dy, "y": y}, {}, threads)
    wide = dy.astype(np.float64), y.astype(np.float64)
    expected = wide[1] * (wide[0] - (wide[0] * wide[1]).sum(-1, keepdims=True))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def gelu_slope(x):
    x = x.astype(np.float64)
    return special.ndtr(x) + x * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(), *SHAPES], ids=str)
def test_gelu(shape, threads):
    dy, x = normal(*shape), normal(*shape, seed=1) * 2
    dy, x = np.asarray(dy), np.asarray(x, np.float32)
    got = run_one_node("GeluGradient1", {"dy": dy, "x": x}, {}, threads)
    assert got.shape == shape
    np.testing.assert_allclose(got, dy * gelu_slope(x), rtol=2e-6, atol=1e-6)


def test_gelu_everywhere():
    """Also where the slope is tiny, and where it passes 0."""
    x = np.linspace(-20, 20, 400_001).astype(np.float32)
    got = run_one_node("GeluGradient1", {"dy": np.ones_like(x), "x": x}, {})
    np.testing.assert_allclose(got, gelu_slope(x), rtol=0, atol=3e-7)
    tail = (x > -9) & (x < -1.5)
    np.testing.assert_allclose(got[tail], gelu_slope(x[tail]), rtol=3e-5)


def test_gelu_of_what_is_special():
    largest = np.finfo(np.float32).max
    x = np.array([0, -0.0, np.inf, -np.inf, np.nan, largest, -largest, 1e-45, -1e-45], np.float32)
    got = run_one_node("GeluGradient1", {"dy": np.ones_like(x), "x": x}, {})
    expected = [0.5, 0.5, 1, 0, np.nan, 1, 0, 0.5, 0.5]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-30)


def swish_slope(x):
    x = x.astype(np.float64)
    s = special.expit(x)
    return s + x * s * special.expit(-x)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(), *SHAPES], ids=str)
def test_swish(shape, threads):
    dy, x = np.asarray(normal(*shape)), np.asarray(normal(*shape, seed=1) * 3, np.float32)
    got = run_one_node("SwishGradient1", {"dy": dy, "x": x}, {}, threads)
    assert got.shape == shape
    np.testing.assert_allclose(got, dy * swish_slope(x), rtol=2e-6, atol=1e-6)


def test_swish_everywhere():
    x = np.linspace(-100, 100, 400_001).astype(np.float32)
    got = run_one_node("SwishGradient1", {"dy": np.ones_like(x), "x": x}, {})
    np.testing.assert_allclose(got, swish_slope(x), rtol=0, atol=3e-7)
    tail = (x > -80) & (x < -1.5)
    np.testing.assert_allclose(got[tail], swish_slope(x[tail]), rtol=3e-5)


def test_swish_of_what_is_special():
    largest = np.finfo(np.float32).max
    x = np.array([0, -0.0, np.inf, -np.inf, np.nan, largest, -largest, 1e-45, -1e-45], np.float32)
    got = run_one_node("SwishGradient1", {"dy": np.ones_like(x), "x": x}, {})
    expected = [0.5, 0.5, 1, 0, np.nan, 1, 0, 0.5, 0.5]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_normalization(shape, threads):
    dy, x = normal(*shape), normal(*shape, seed=1) * 3 + 1
    wide = x.astype(np.float64)
    inverse = (1 / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)).astype(np.float32)
    given = {"dy": dy, "x": x, "inverse": inverse}
    got = run_one_node("RmsNormGradient1", given, {}, threads)
    along = (dy.astype(np.float64) * wide).mean(-1, keepdims=True)
    expected = inverse * (dy - wide * along * inverse.astype(np.float64) ** 2)
    near = 3e-6 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=near)


LAYERS = [
    ((5, 7), (7,)),
    ((2, 3, 8), (8,)),
    ((2, 3, 8), (3, 8)),
    ((2, 3, 8), (2, 3, 8)),
    ((3, 1), (1,)),
    ((4, 1, 6), (1, 6)),
    ((300, 130), (130,)),
    ((2, 200, 65), (65,)),
    ((2, 2, 5, 7, 3), (7, 3)),
    ((2, 1, 3, 1, 2, 1, 2, 1, 2, 5), (2, 5)),
]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("shape", "inner"), LAYERS, ids=str)
def test_layer_normalization(shape, inner, threads):
    dy, scale, x = normal(*shape), normal(*inner, seed=1), normal(*shape, seed=2) * 3 + 1
    axes = tuple(range(len(shape) - len(inner), len(shape)))
    wide = x.astype(np.float64)
    mean = wide.mean(axes, keepdims=True).astype(np.float32)
    inverse = (1 / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)).astype(np.float32)
    operands = {"dy": dy, "x": x, "mean": mean, "inverse": inverse, "scale": scale}
    session = of_one_node("LayerNormGradient9", operands, {}, threads, 3)
    dx, d_scale, d_bias = session.run(None, operands)
    n, g = (wide - mean) * inverse, dy.astype(np.float64) * scale
    along = (g * n).mean(axes, keepdims=True)
    expected = (g - g.mean(axes, keepdims=True) - n * along) * inverse
    examples = tuple(range(len(shape) - len(inner)))
    near = 3e-6 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(dx, expected, rtol=0, atol=near)
    count = np.prod(shape[: len(examples)])
    for got, terms in ((d_scale, dy * n), (d_bias, dy.astype(np.float64))):
        assert got.shape == inner
        np.testing.assert_allclose(got, terms.sum(examples), rtol=0, atol=2e-6 * count**0.5 * 4)


def test_the_bits_do_not_depend_on_threads():
    shape = (600, 130)
    dy, x, scale = normal(*shape), normal(*shape, seed=1), normal(130)
    mean, inverse = x.mean(-1, keepdims=True), 1 / x.std(-1, keepdims=True)
    operands = {"dy": dy, "x": x, "mean": mean, "inverse": inverse, "scale": scale}
    for name, given, outputs in (
        ("SoftmaxGradient", {"dy": dy, "y": x}, 1),
        ("GeluGradient", {"dy": dy, "x": x}, 1),
        ("SwishGradient", {"dy": dy, "x": x}, 1),
        ("RmsNormGradient", {"dy": dy, "x": x, "inverse": inverse}, 1),
        ("LayerNormGradient", operands, 3),
    ):
        one, four = (
            of_one_node(name, given, {}, threads, outputs).run(None, given) for threads in (1, 4)
        )
        assert [a.tobytes() for a in one] == [a.tobytes() for a in four], name


@pytest.mark.parametrize("shape", [(5, 7), (300, 130)], ids=str)
def test_the_result_may_lie_where_the_gradient_is(shape):
    dy, x, scale = normal(*shape), normal(*shape, seed=1), normal(shape[1])
    mean, inverse = x.mean(-1, keepdims=True), 1 / x.std(-1, keepdims=True)
    layer = {"dy": dy, "x": x, "mean": mean, "inverse": inverse, "scale": scale}
    for name, given, outputs in (
        ("SoftmaxGradient", {"dy": dy, "y": x}, 1),
        ("GeluGradient", {"dy": dy, "x": x}, 1),
        ("SwishGradient", {"dy": dy, "x": x}, 1),
        ("RmsNormGradient", {"dy": dy, "x": x, "inverse": inverse}, 1),
        ("LayerNormGradient", layer, 3),
    ):
        session = of_one_node(name, given, {}, 2, outputs)
        elsewhere, there = session.run(None, given), run_over_the_first(session, given)
        assert [a.tobytes() for a in elsewhere] == [a.tobytes() for a in there], name


def test_no_rows():
    dy, mean, scale = np.zeros((0, 5), "f"), np.zeros((0, 1), "f"), np.ones(5, "f")
    assert run_one_node("SoftmaxGradient", {"dy": dy, "y": dy}, {}).shape == (0, 5)
    assert run_one_node("GeluGradient", {"dy": dy, "x": dy}, {}).shape == (0, 5)
    assert run_one_node("SwishGradient", {"dy": dy, "x": dy}, {}).shape == (0, 5)
    operands = {"dy": dy, "x": dy, "mean": mean, "inverse": mean, "scale": scale}
    results = of_one_node("LayerNormGradient", operands, {}, outputs=3).run(None, operands)
    assert [result.shape for result in results] == [(0, 5), (5,), (5,)]
    assert not results[1].any()
    assert not results[2].any()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("SoftmaxGradient", [(2, 3), (2, 4)]),
        ("SoftmaxGradient", [(2, 3), (6,)]),
        ("GeluGradient", [(2, 3), (3,)]),
        ("SwishGradient", [(2, 3), (3,)]),
        ("RmsNormGradient", [(2, 3), (2, 3), (2, 3)]),
        ("RmsNormGradient", [(2, 3), (2, 3), (2,)]),
        ("RmsNormGradient", [(2, 3), (2, 3), (1, 1)]),
        ("RmsNormGradient", [(2, 3), (3, 3), (2, 1)]),
        ("LayerNormGradient", [(2, 3), (2, 3), (2, 1), (2, 1), ()]),
        ("LayerNormGradient", [(2, 3), (2, 3), (2, 1), (2, 1), (1,)]),
        ("LayerNormGradient", [(2, 3), (2, 3), (2, 1), (2, 1), (1, 3)]),
        ("LayerNormGradient", [(2, 3), (2, 3), (2,), (2, 1), (3,)]),
        ("LayerNormGradient", [(2, 3), (2, 3), (2, 1), (2, 3), (3,)]),
        ("LayerNormGradient", [(2, 3), (3, 3), (2, 1), (2, 1), (3,)]),
    ],
)
def test_what_does_not_fit_is_refused(name, shapes):
    operands = {f"input_{i}": np.ones(shape, np.float32) for i, shape in enumerate(shapes)}
    session = of_one_node(name, operands, {}, outputs=3 if "Layer" in name else 1)
    with pytest.raises(Exception, match=f"graphopt.{name}: the shapes"):
        session.run(None, operands)


RMS = """two = Constant<value_float=2.0>() p = Pow(h, two)
    m = ReduceMean<keepdims=1>(p, last) e = Constant<value_float=0.1>() t = Add(m, e)
    q = Sqrt(t) r = Reciprocal(q) z = Mul(h, r)"""

# Of which the kernels know nothing: the gradient stays what it was.
OTHERS = {
    "Softmax of another axis": "z = Softmax<axis=1>(h)",
    "LayerNormalization of which more is read": "l, m = LayerNormalization(h, scale, bias) "
    "z = Add(l, m)",
    "a product with another sigmoid": "s = Sigmoid(h) u = Neg(h) z = Mul(u, s)",
    "RMS normalization of another power": RMS.replace("=2.0", "=4.0"),
    "RMS normalization of another axis": RMS.replace("(p, last)", "(p, first)"),
    "RMS normalization of nothing more": RMS.replace("=0.1", "=0.0"),
    "RMS normalization of another value": RMS.replace("z = Mul(h, r)", "u = Neg(h) z = Mul(u, r)"),
    "Gelu by tanh": 'z = Gelu<approximate="tanh">(h)',
}
KNOWN = {
    "Softmax": "z = Softmax(h)",
    "LayerNormalization": "z = LayerNormalization(h, scale, bias)",
    "LayerNormalization without bias": "z = LayerNormalization(h, scale)",
    "LayerNormalization of two axes": "z = LayerNormalization<axis=1>(h, wide, wide)",
    "Gelu": "z = Gelu(h)",
    "RMS normalization": RMS,
    "RMS normalization by a product": RMS.replace("Pow(h, two)", "Mul(h, h)"),
    "RMS normalization from behind": RMS.replace("Mul(h, r)", "Mul(r, h)"),
    "Swish": "s = Sigmoid(h) z = Mul(h, s)",
    "Swish from behind": "s = Sigmoid(h) z = Mul(s, h)",
    "Swish whose sigmoid is read": "s = Sigmoid(h) p = Mul(s, h) z = Add(p, s)",
}


def network(line):
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 20]>
        network (float[N,4,6] x) => (float[N,4,2] y) {{
            h = MatMul(x, w) {line} y = MatMul(z, v) }}""")
    shapes = {"w": (6, 8), "v": (8, 2), "scale": (8,), "bias": (8,)}
    for name, shape in (shapes | {"wide": (4, 8)}).items():
        if name in model.graph.node[1].input or name in ("w", "v"):
            tensor = onnx.numpy_helper.from_array(normal(*shape) + 0.5, name)
            model.graph.initializer.append(tensor)
    for name, axis in {"first": 1, "last": -1}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([axis]), name))
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("name", [*KNOWN, *OTHERS])
def test_a_network_trains_the_same_with_kernels_and_without(name):
    model = network((KNOWN | OTHERS)[name])
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)
    graph = graphopt.training_graph(model, "mse", optimizer)
    fused = kernels_of_same_training(
        graph,
        lambda values: {
            "x": values.standard_normal((6, 4, 6)).astype(np.float32),
            "labels": values.standard_normal((6, 4, 2)).astype(np.float32),
        },
    )
    fused = [kernel for kernel in fused if "Gradient" in kernel]
    assert len(fused) == (name in KNOWN), fused
