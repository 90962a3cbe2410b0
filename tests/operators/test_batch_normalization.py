"""Gradients of batch normalization, by the statistics of the batch and by given ones."""

import numpy as np
import onnx
import pytest
from torch.nn import functional

import graphopt
from tests.helpers.gradient_oracle import Case, cases, check, normal, onnx_gradients

SHAPES = ((4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 3), (6, 1, 2), (1, 3, 4))


def parameters(channels):
    return {
        "s": normal(channels, seed=1) + 1,
        "b": normal(channels, seed=2),
        "m": normal(channels, seed=3),
        "v": np.abs(normal(channels, seed=4)) + 0.5,
    }


def by_batch(x, s, b, _m, _v):
    return functional.batch_norm(x, None, None, s, b, training=True, eps=1e-3)


def by_given(x, s, b, m, v):
    shape = [1, -1] + [1] * (x.ndim - 2)
    m, v, s, b = (value.reshape(shape) for value in (m, v, s, b))
    return (x - m) / (v + 1e-3).sqrt() * s + b


TRAINED = {
    f"batch {shape} opset {opset}": Case(
        "y = BatchNormalization<epsilon=0.001, training_mode=1>(x, s, b, m, v)"
        if opset == 17
        # Its scale is trained, so the mode is that of training all the same.
        else "y = BatchNormalization<epsilon=0.001>(x, s, b, m, v)",
        {"x": 3 * normal(*shape) + 1, **parameters(shape[1])},
        by_batch,
        constants=("m", "v"),
        dynamic="none" if opset == 21 else "all",
        tolerance=2e-5,
    )
    for shape in SHAPES
    for opset in (17, 21)
}
FROZEN = {
    f"given {shape}": Case(
        "one = Constant<value = float {1.0}>() m2 = Mul(m, one) v2 = Mul(v, one) "
        "y = BatchNormalization<epsilon=0.001>(x, s, b, m2, v2)",
        {"x": normal(*shape), **parameters(shape[1])},
        by_given,
        constants=("s", "b"),
        dynamic="batch",
    )
    for shape in SHAPES
}  # fmt: skip


def standardized(w):
    """The rows of a weight by their own mean and variance."""
    return functional.batch_norm(w[None], None, None, training=True, eps=1e-3)[0]


def with_moved(x, s, b, m, v):
    axes = [0, *range(2, x.ndim)]
    variance = x.var(axes, correction=0)
    return by_batch(x, s, b, m, v), 0.75 * m + 0.25 * x.mean(axes), 0.75 * v + 0.25 * variance


W = normal(4, 6)
ONES = {"one": np.ones(4, np.float32), "nil": np.zeros(4, np.float32)}
IN_ROWS = "a = Constant<value_ints=[0]>() c = Unsqueeze(w, a)"
COMPUTED = (
    "d = Constant<value_ints=[0, 2]>() m = ReduceMean<axes=[0, 2], keepdims=0>(c) "
    "k = ReduceMean<axes=[0, 2]>(c) e = Sub(c, k) q = Mul(e, e) "
    "v = ReduceMean<axes=[0, 2], keepdims=0>(q)"
)
WITHOUT_STATISTICS = {
    "a weight, in training mode, by computed statistics": Case(
        f"{IN_ROWS} {COMPUTED} "
        "z, r1, r2 = BatchNormalization<epsilon=0.001, training_mode=1>(c, one, nil, m, v) "
        "y = Squeeze(z, a)",
        {"w": W, **ONES},
        lambda w, *_: standardized(w),
        constants=("one", "nil"),
        tolerance=2e-5,
    ),
    "a weight, outside training mode, by computed statistics": Case(
        f"{IN_ROWS} {COMPUTED} z = BatchNormalization<epsilon=0.001>(c, one, nil, m, v) "
        "y = Squeeze(z, a)",
        {"w": W, **ONES},
        lambda w, *_: standardized(w),
        constants=("one", "nil"),
        tolerance=2e-5,
    ),
    "a weight, in training mode, by constants": Case(
        f"{IN_ROWS} m = Constant<value_floats=[0.0, 0.0, 0.0, 0.0]>() "
        "v = Constant<value_floats=[1.0, 1.0, 1.0, 1.0]>() "
        "z = BatchNormalization<epsilon=0.001, training_mode=1>(c, one, nil, m, v) "
        "y = Squeeze(z, a)",
        {"w": W, **ONES},
        lambda w, *_: standardized(w),
        constants=("one", "nil"),
        tolerance=2e-5,
    ),
    "a trained scale, by computed statistics": Case(
        "m = ReduceMean<axes=[0, 2], keepdims=0>(x) k = ReduceMean<axes=[0, 2]>(x) e = Sub(x, k) "
        "q = Mul(e, e) v = ReduceMean<axes=[0, 2], keepdims=0>(q) "
        "y = BatchNormalization<epsilon=0.001>(x, s, b, m, v)",
        {"x": normal(2, 4, 3), "s": normal(4, seed=1), "b": normal(4, seed=2)},
        lambda x, s, b: by_batch(x, s, b, None, None),
        tolerance=2e-5,
    ),
    "a trained scale, by statistics of something else": Case(
        "m = ReduceMean<axes=[0], keepdims=0>(o) q = Mul(o, o) "
        "v = ReduceMean<axes=[0], keepdims=0>(q) "
        "y = BatchNormalization<epsilon=0.001>(x, s, b, m, v)",
        {"x": normal(2, 4, 3), "s": normal(4, seed=1), "b": normal(4, seed=2), "o": normal(3, 4)},
        lambda x, s, b, o: by_given(x, s, b, o.mean(0), (o * o).mean(0)),
        tolerance=2e-5,
    ),
    "the moved statistics are read": Case(
        "y, m2, v2 = BatchNormalization<epsilon=0.001, training_mode=1, momentum=0.75>"
        "(x, s, b, m, v)",
        {"x": normal(3, 4, 2), **parameters(4)},
        with_moved,
        outputs=("y", "m2", "v2"),
        constants=("m", "v"),
        tolerance=2e-5,
    ),
}


@cases(WITHOUT_STATISTICS)
def test_without_statistics_to_carry(case, dynamic):
    check(case, dynamic)


def test_a_stored_statistic_must_be_an_initializer():
    """Outside training mode it would be lost what it moves to."""
    case = Case(
        "m = Constant<value_floats=[0.0, 0.0]>() i = Identity(m) "
        "v = Constant<value_floats=[1.0, 1.0]>() y = BatchNormalization(x, s, b, i, v)",
        {"x": normal(3, 2), "s": normal(2), "b": normal(2)},
        lambda x, *_: x,
    )
    with pytest.raises(ValueError, match="'y': a running statistic of it is not an initializer"):
        onnx_gradients(case, ["x", "s", "b"], dynamic=False)


@pytest.mark.quick
@cases(TRAINED)
def test_by_the_statistics_of_the_batch(case, dynamic):
    check(case, dynamic)


@cases(FROZEN)
def test_by_given_statistics_which_may_be_computed(case, dynamic):
    check(case, dynamic)


@pytest.mark.any_runtime
@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_its_input_is_not_kept_beside_the_centered_one(provider):
    """Not even for its shape, where the batch is open; the kernels read the input itself."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N,3,8,8] x) => (float[N,4,6,6] y)
            <float[4,3,3,3] w = {WEIGHTS}, float[4] s = {1,1,1,1}, float[4] b = {0,0,0,0},
             float[4] m = {0,0,0,0}, float[4] v = {1,1,1,1}>
        { c = Conv(x, w) y = BatchNormalization<training_mode=1>(c, s, b, m, v) }
        """.replace("WEIGHTS", ",".join(["0.5"] * 108))
    )
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    graph = graphopt.training_graph(model, "mse", optimizer, provider=provider)
    readers = [node for node in graph.model.graph.node if "c" in node.input]
    backward = {n.op_type for n in readers if n.name.startswith("backward/")}
    forward = {n.op_type for n in readers} - backward
    if provider == "CPUExecutionProvider":
        assert backward == {"BatchNormGradient1"}
        assert forward == {"BatchNormStatistics1", "BatchNormalization"}
    else:
        assert not backward
        assert forward == {"ReduceMean", "Sub", "BatchNormalization"}


@pytest.mark.any_runtime
def test_of_what_is_fed_there_are_sums_alone():
    """No gradient flows further."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        net (float[N,4,2,2] x) => (float[N,4,2,2] y)
            <float[4] s = {1,1,1,1}, float[4] b = {0,0,0,0}, float[4] m = {0,0,0,0},
             float[4] v = {1,1,1,1}>
        { y = BatchNormalization<training_mode=1>(x, s, b, m, v) }""")
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    graph = graphopt.training_graph(model, "mse", optimizer)
    backward = {n.op_type for n in graph.model.graph.node if n.name.startswith("backward/")}
    assert "BatchNormSums1" in backward
    assert "BatchNormGradient1" not in backward


MOMENTA = {"two": (0.7, 0.7), "three": (0.9, 0.5, 0.75), "one that stays": (1.0, 0.5),
           "all that stay": (1.0, 1.0), "one that keeps nothing": (0.5, 0.0)}  # fmt: skip


@pytest.mark.parametrize("momenta", MOMENTA.values(), ids=MOMENTA)
@pytest.mark.parametrize("options", [{}, {"memory": "low"}, {"accumulation": 2}], ids=str)
def test_a_layer_that_is_applied_several_times(momenta, options):
    """Its running statistics move once for each, one after the other, as in siamese networks."""
    count = len(momenta)
    inputs = ", ".join(f"float[N,3] x{i}" for i in range(count))
    layers = " ".join(
        f"y{i} = BatchNormalization<momentum={momentum}>(x{i}, s, b, m, v)"
        for i, momentum in enumerate(momenta)
    )
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> siamese ({inputs}) => (loss) {{ {layers}
            y = Sum({", ".join(f"y{i}" for i in range(count))}) e = Tanh(y)
            loss = ReduceMean<keepdims = 0>(e) }}"""
    )
    start = parameters(3)
    for name, array in start.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.01)
    graph = graphopt.training_graph(model, "loss", opt, **options)
    assert graphopt.verify(graph).verified
    session = graphopt.Session(graph)
    mean, variance = start["m"].astype("d"), start["v"].astype("d")
    for step in range(3):
        batch = [(i + 1) * normal(5, 3, seed=10 * step + i) + i for i in range(count)]
        session.step({f"x{i}": x for i, x in enumerate(batch)})
        for momentum, x in zip(momenta, batch, strict=True):
            mean = momentum * mean + (1 - momentum) * x.mean(0, dtype="d")
            variance = momentum * variance + (1 - momentum) * x.var(0, dtype="d")
    np.testing.assert_allclose(session.state["m"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(session.state["v"], variance, rtol=1e-5, atol=1e-6)
