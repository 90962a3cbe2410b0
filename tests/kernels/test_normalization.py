"""The kernels of batch normalization, against NumPy in float64."""

import numpy as np
import onnx
import pytest

import graphopt
from tests.helpers.environments import needs_kernels
from tests.helpers.kernel_sessions import kernels_of_same_training, of_one_node, run_over_the_first

pytestmark = needs_kernels

SHAPES = [
    (1, 1),
    (5, 3),
    (64, 700),
    (300, 70),
    (1000, 9),
    (700, 2, 1, 1),
    (2, 3, 5),
    (3, 4, 7, 7),
    (2, 5, 16, 16),
    (2, 70, 33, 31),
    (8, 3, 2, 3, 5),
    (2, 2, 1, 2, 2, 3, 2, 1),
    (2, 2, 1, 2, 2, 3, 2, 1, 2, 1, 2, 1),
]


def calls(shape, offset=0.0):
    """The kernels: name, operands, attributes, and what they give."""
    values = np.random.default_rng(list(shape))
    x = (values.standard_normal(shape) * 2 + offset).astype(np.float32)
    dy = values.standard_normal(shape).astype(np.float32)
    scale, variance = values.standard_normal((2, shape[1])).astype(np.float32)
    variance = np.square(variance) + np.float32(0.5)
    axes = (0, *range(2, len(shape)))
    wide = x.astype(np.float64)
    mean = wide.mean(axes)
    given = mean.astype(np.float32)
    per_channel = [1, -1, *[1] * (len(shape) - 2)]
    centered = wide - given.astype(np.float64).reshape(per_channel)
    yield "BatchNormStatistics3", {"x": x}, {}, [mean, wide.var(axes)]
    of_both = {"dy": dy, "x": x, "mean": given}
    d_bias, product = dy.astype(np.float64).sum(axes), (dy * centered).sum(axes)
    yield "BatchNormSums", of_both, {}, [d_bias, product]
    inverse = 1 / np.sqrt(variance.astype(np.float64) + 0.125)
    count = np.prod(shape) / shape[1]
    of_channels = scale * inverse, d_bias / count, product * inverse**2 / count
    k, mean_dy, along = (array.reshape(per_channel) for array in of_channels)
    dx = k * (dy - mean_dy - centered * along)
    of_all = of_both | {"variance": variance, "scale": scale}
    yield "BatchNormGradient1", of_all, {"epsilon": 0.125}, [dx, product * inverse, d_bias]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_numpy(shape, threads):
    for name, operands, attributes, expected in calls(shape):
        session = of_one_node(name, operands, attributes, threads, len(expected))
        for got, want in zip(session.run(None, operands), expected, strict=True):
            assert got.shape == want.shape, name
            size = np.prod(shape) / shape[1]
            near = 2e-6 * max(np.abs(want).max(), np.sqrt(size))
            np.testing.assert_allclose(got, want, rtol=0, atol=near, err_msg=name)


@pytest.mark.parametrize("shape", [(8, 70, 33, 31), (700, 530)], ids=str)
def test_the_bits_do_not_depend_on_threads(shape):
    for name, operands, attributes, expected in calls(shape):
        one, four = (
            of_one_node(name, operands, attributes, threads, len(expected)).run(None, operands)
            for threads in (1, 4)
        )
        assert [a.tobytes() for a in one] == [a.tobytes() for a in four], name


@pytest.mark.parametrize("shape", [(2, 70, 33, 31), (700, 53)], ids=str)
def test_the_result_may_lie_where_the_gradient_is(shape):
    name, operands, attributes, _ = list(calls(shape))[-1]
    session = of_one_node(name, operands, attributes, 2, outputs=3)
    elsewhere, there = session.run(None, operands), run_over_the_first(session, operands)
    assert [a.tobytes() for a in elsewhere] == [a.tobytes() for a in there]


def test_a_small_variance_beside_a_large_mean():
    """It is that of what is centered first, not a difference of large squares."""
    name, operands, _, (mean, variance) = next(calls((4, 3, 16, 16), offset=3000.0))
    got = of_one_node(name, operands, {}, outputs=2).run(None, operands)
    np.testing.assert_allclose(got[0], mean, rtol=1e-7)
    np.testing.assert_allclose(got[1], variance, rtol=1e-5)


def test_what_is_not_finite_stays_in_its_channel():
    for name, operands, attributes, expected in calls((2, 3, 8, 8)):
        operands["x"][1, 1, 2, 3] = np.nan
        session = of_one_node(name, operands, attributes, outputs=len(expected))
        results = session.run(None, operands)
        # The sum of dy does not read x.
        of_dy = {"BatchNormSums": 0, "BatchNormGradient1": 2}.get(name)
        for index, result in enumerate(results):
            by_channel = result if result.ndim == 1 else result.swapaxes(0, 1)
            finite = np.isfinite(by_channel.reshape(3, -1))
            assert finite.all(1).tolist() == [True, index == of_dy, True], name
            assert finite[1].all() or not finite[1].any(), name


def test_no_examples():
    for name, operands, attributes, expected in (*calls((2, 3, 4, 4)), *calls((2, 3, 1, 1))):
        few = {key: array[:0] if array.ndim > 1 else array for key, array in operands.items()}
        results = of_one_node(name, few, attributes, outputs=len(expected)).run(None, few)
        if name == "BatchNormGradient1":
            assert results[0].shape == (0, *expected[0].shape[1:])
            assert not np.any(results[1:])
        elif name == "BatchNormSums":
            assert not np.any(results)
        else:
            assert np.isnan(results).all()  # as of the body: 0 / 0


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("BatchNormStatistics", [(3,)]),
        ("BatchNormSums", [(2, 3, 4), (2, 3, 5), (3,)]),
        ("BatchNormSums", [(2, 3, 4), (2, 3), (3,)]),
        ("BatchNormSums", [(2, 3, 4), (2, 3, 4), (2,)]),
        ("BatchNormSums", [(2, 3, 4), (2, 3, 4), (1, 3)]),
        ("BatchNormGradient", [(2, 3), (2, 3), (3,), (3,), (2,)]),
    ],
)
def test_what_does_not_fit_is_refused(name, shapes):
    operands = {f"input_{i}": np.ones(shape, np.float32) for i, shape in enumerate(shapes)}
    of_gradient = name == "BatchNormGradient"
    attributes = {"epsilon": 1e-5} if of_gradient else {}
    session = of_one_node(name, operands, attributes, outputs=3 if of_gradient else 2)
    with pytest.raises(Exception, match=f"graphopt.{name}: the shapes"):
        session.run(None, operands)


@pytest.mark.parametrize("memory", ["fast", "balanced", "low"])
def test_a_network_trains_the_same_with_kernels_and_without(memory):
    layers = "".join(
        f"c{i} = Conv<pads=[1,1,1,1]>(r{i}, w{i}) "
        f"n{i} = BatchNormalization<training_mode=1>(c{i}, s{i}, b{i}, m{i}, v{i}) "
        f"r{i + 1} = Relu(n{i}) "
        for i in range(4)
    )
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
        network (float[N,4,12,12] r0) => (float[N,4] y) {{
            {layers} p = GlobalAveragePool(r4) y = Flatten(p) }}""")
    values = np.random.default_rng(0)
    for i in range(4):
        starts = {"w": values.standard_normal((4, 4, 3, 3)), "s": np.ones(4), "b": np.zeros(4)}
        for name, array in (starts | {"m": np.zeros(4), "v": np.ones(4)}).items():
            tensor = onnx.numpy_helper.from_array(array.astype(np.float32), f"{name}{i}")
            model.graph.initializer.append(tensor)
    model = onnx.shape_inference.infer_shapes(model)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)
    graph = graphopt.training_graph(model, "cross_entropy", optimizer, memory=memory)
    read = {name for node in graph.model.graph.node for name in node.input}
    assert {tensor.name for tensor in graph.model.graph.initializer} <= read
    fused = kernels_of_same_training(
        graph,
        lambda values: {
            "r0": values.standard_normal((6, 4, 12, 12)).astype(np.float32),
            "labels": values.integers(0, 4, 6),
        },
    )
    assert [name for name in fused if name.startswith("BatchNorm")] == [
        "BatchNormGradient1",
        "BatchNormStatistics1",
    ]
