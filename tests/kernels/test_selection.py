"""The kernels of the gradients of Relu and of MaxPool in 2-D, against NumPy in float64."""

import numpy as np
import onnx
import pytest

import graphopt
from tests.helpers.environments import needs_kernels
from tests.helpers.kernel_sessions import kernels_of_same_training, of_one_node, run_over_the_first

pytestmark = needs_kernels


def case(shape):
    values = np.random.default_rng(list(shape))
    dy, y = values.standard_normal((2, *shape)).astype(np.float32)
    return np.array(dy), np.array(np.maximum(y, 0))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (4097,), (3, 70, 33, 31), (2, 0, 3)], ids=str)
def test_relu(shape, threads):
    dy, y = case(shape)
    (got,) = of_one_node("ReluGradient1", {"dy": dy, "y": y}, {}, threads).run(
        None, {"dy": dy, "y": y}
    )
    np.testing.assert_array_equal(got, dy * (y > 0))
    assert got.shape == shape


def test_relu_at_its_edges():
    """As a product with 0 or 1: what is not finite is not lost."""
    y = np.array([0, -0.0, np.nan, 1e-45, np.inf, 0, 0], np.float32)
    dy = np.array([2, 2, 2, 2, 2, np.inf, np.nan], np.float32)
    (got,) = of_one_node("ReluGradient", {"dy": dy, "y": y}, {}).run(None, {"dy": dy, "y": y})
    np.testing.assert_array_equal(got, [0, 0, 0, 2, 2, np.nan, np.nan])


def test_the_result_may_lie_where_the_gradient_is():
    dy, y = case((2, 70, 33, 31))
    operands = {"dy": dy, "y": y}
    session = of_one_node("ReluGradient", operands, {}, 2)
    (elsewhere,), (there,) = session.run(None, operands), run_over_the_first(session, operands)
    assert elsewhere.tobytes() == there.tobytes()


WINDOWS = [
    # image, kernel, strides, dilations, pads
    ((2, 3, 9, 9), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
    ((2, 70, 33, 31), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
    ((1, 2, 8, 7), (2, 3), (1, 1), (1, 1), (0, 0, 0, 0)),
    ((1, 2, 12, 11), (3, 2), (3, 4), (2, 3), (2, 1, 1, 0)),
    ((2, 1, 5, 700), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((2, 1, 5, 700), (1, 5), (1, 2), (1, 1), (0, 4, 0, 4)),
    ((1, 1, 3, 3), (3, 3), (1, 1), (1, 1), (2, 2, 2, 2)),
    ((1, 1, 1, 1), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)),
    ((0, 2, 4, 4), (2, 2), (2, 2), (1, 1), (0, 0, 0, 0)),
]


def pool_case(image, kernel, strides, dilations, pads, x=None):
    """Operands, attributes, and the gradient: to the first of the largest elements."""
    values = np.random.default_rng(0)
    if x is None:
        x = values.integers(-4, 4, image).astype(np.float32)  # with ties
    counts = [
        (image[2 + a] + pads[a] + pads[2 + a] - dilations[a] * (kernel[a] - 1) - 1) // strides[a]
        + 1
        for a in (0, 1)
    ]
    dy = values.standard_normal((*image[:2], *counts)).astype(np.float32)
    dx = np.zeros(image)
    for n, c, *window in np.ndindex(*dy.shape):
        axes = [
            [
                at
                for k in range(kernel[a])
                if 0 <= (at := window[a] * strides[a] + k * dilations[a] - pads[a]) < image[2 + a]
            ]
            for a in (0, 1)
        ]
        inside = x[n, c][np.ix_(*axes)]
        row, column = np.unravel_index(np.argmax(inside), inside.shape)
        dx[n, c, axes[0][row], axes[1][column]] += dy[n, c, *window]
    names = ("kernel_shape", "strides", "dilations", "pads")
    attributes = dict(zip(names, map(list, (kernel, strides, dilations, pads)), strict=True))
    return {"x": x, "dy": dy}, attributes, dx


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_max_pool(window, threads):
    operands, attributes, expected = pool_case(*window)
    (got,) = of_one_node("MaxPoolGradient2", operands, attributes, threads).run(None, operands)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def test_a_window_of_the_lowest_numbers_gives_its_first():
    x = np.full((1, 1, 4, 4), -np.inf, np.float32)
    operands, attributes, expected = pool_case(x.shape, (2, 2), (2, 2), (1, 1), (0,) * 4, x)
    (got,) = of_one_node("MaxPoolGradient", operands, attributes).run(None, operands)
    np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_the_bits_do_not_depend_on_threads():
    operands, attributes, _ = pool_case(*WINDOWS[1])
    one, four = (
        of_one_node("MaxPoolGradient", operands, attributes, threads).run(None, operands)[0]
        for threads in (1, 4)
    )
    assert one.tobytes() == four.tobytes()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("ReluGradient", [(2, 3), (3, 2)]),
        ("ReluGradient", [(2, 3), (6,)]),
        ("MaxPoolGradient", [(2, 3, 4, 4), (2, 2, 2, 2)]),
        ("MaxPoolGradient", [(2, 3, 4), (2, 3, 2, 2)]),
    ],
)
def test_what_does_not_fit_is_refused(name, shapes):
    operands = {f"input_{i}": np.ones(shape, np.float32) for i, shape in enumerate(shapes)}
    of = {"kernel_shape": [2, 2], "strides": [2, 2], "dilations": [1, 1], "pads": [0] * 4}
    session = of_one_node(name, operands, of if "Pool" in name else {})
    with pytest.raises(Exception, match=f"graphopt.{name}: the shapes"):
        session.run(None, operands)


@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 0, 1, 1]], ids=str)
def test_a_network_trains_the_same_with_kernels_and_without(pads):
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        network (float[N,3,12,12] x) => (float[N,4] y) {{
            c = Conv(x, w) r = Relu(c)
            m = MaxPool<kernel_shape=[3,3], strides=[2,2], pads={pads}>(r)
            p = GlobalAveragePool(m) y = Flatten(p) }}""")
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)
    graph = graphopt.training_graph(
        onnx.shape_inference.infer_shapes(model), "cross_entropy", optimizer
    )
    fused = kernels_of_same_training(
        graph,
        lambda values: {
            "x": values.standard_normal((6, 3, 12, 12)).astype(np.float32),
            "labels": values.integers(0, 4, 6),
        },
    )
    assert {"MaxPoolGradient1", "ReluGradient1"} <= set(fused)
