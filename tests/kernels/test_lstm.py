"""The kernels of LSTMs and their gradients, against NumPy in float64."""

import numpy as np
import onnx
import pytest

import graphopt
from tests.helpers.environments import needs_kernels
from tests.helpers.kernel_sessions import kernels_of_same_training, of_one_node

pytestmark = needs_kernels

# Steps, batch and units: of less than a vector, of whole ones, and of some more.
SIZES = [
    (1, 1, 1),
    (3, 2, 3),
    (5, 7, 8),
    (4, 13, 17),
    (2, 5, 33),
    (3, 12, 64),
    (4, 1, 40),
    (2, 40, 100),
]
FORWARD = ("h", "c", "y", "h_before", "c_before", "gates", "block")
DIRECTIONS = [False, True]


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def forward_operands(steps, batch, units, scale=1.0):
    return {
        "x": normal(steps, batch, 4 * units) * np.float32(scale),
        "r": normal(4 * units, units, seed=1) / np.float32(units**0.5),
        "h": normal(batch, units, seed=2),
        "c": normal(batch, units, seed=3),
    }


def forward(x, r, h, c, *, reverse):
    x, r, h, c = (value.astype(np.float64) for value in (x, r, h, c))
    steps = len(x)
    lists = {name: np.zeros((steps, *h.shape)) for name in FORWARD[2:]}
    lists["gates"] = np.zeros((steps, len(h), 3 * h.shape[1]))
    for t in range(steps)[:: -1 if reverse else 1]:
        lists["h_before"][t], lists["c_before"][t] = h, c
        i, o, f, block = np.split(x[t] + h @ r.T, 4, axis=1)
        i, o, f, block = sigmoid(i), sigmoid(o), sigmoid(f), np.tanh(block)
        c = f * c + i * block
        h = o * np.tanh(c)
        lists["gates"][t], lists["block"][t] = np.concatenate([i, o, f], axis=1), block
        lists["y"][t] = h
    return {"h": h, "c": c, **lists}


def gradient_operands(sizes, *, reverse):
    steps, batch, units = sizes
    given = forward_operands(*sizes)
    found = forward(**given, reverse=reverse)
    kept = {name: found[name].astype(np.float32) for name in ("gates", "block", "c_before")}
    states = {"dh": normal(batch, units, seed=5), "dc": normal(batch, units, seed=6)}
    return {"dy": normal(steps, batch, units, seed=4), **states, **kept, "r": given["r"]}


def gradient(dy, dh, dc, gates, block, c_before, r, *, reverse):
    wide = (v.astype(np.float64) for v in (dy, dh, dc, gates, block, c_before, r))
    dy, dh, dc, gates, block, c_before, r = wide
    dx = np.zeros((*dy.shape[:2], 4 * dy.shape[2]))
    for t in range(len(dy))[:: 1 if reverse else -1]:
        (i, o, f), g = np.split(gates[t], 3, axis=1), block[t]
        tangent = np.tanh(f * c_before[t] + i * g)
        dh = dh + dy[t]
        dc = dc + dh * o * (1 - tangent**2)
        of_gates = (
            dc * g * i * (1 - i),
            dh * tangent * o * (1 - o),
            dc * c_before[t] * f * (1 - f),
        )
        dx[t] = np.concatenate([*of_gates, dc * i * (1 - g**2)], axis=1)
        dh, dc = dx[t] @ r, dc * f
    return dx, dh, dc


def name_of(kind, *, reverse):
    return f"LstmLayer{'Reverse' if reverse else ''}{kind}3"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("reverse", DIRECTIONS, ids=["forward", "reverse"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_forward(sizes, reverse, threads):
    operands = forward_operands(*sizes)
    got = of_one_node(name_of("", reverse=reverse), operands, {}, threads, 7).run(None, operands)
    expected = forward(**operands, reverse=reverse)
    for name, one in zip(FORWARD, got, strict=True):
        assert one.shape == expected[name].shape, name
        np.testing.assert_allclose(one, expected[name], rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("reverse", DIRECTIONS, ids=["forward", "reverse"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradient(sizes, reverse, threads):
    operands = gradient_operands(sizes, reverse=reverse)
    session = of_one_node(name_of("Gradient", reverse=reverse), operands, {}, threads, 3)
    expected = gradient(**operands, reverse=reverse)
    for got, want in zip(session.run(None, operands), expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * max(1, np.abs(want).max()))


def of_gates(**values):
    """x of one step, one sample and as many units as values; the other gates get 0."""
    count = len(next(iter(values.values())))
    gates = [values.get(name, np.zeros(count)) for name in ("i", "o", "f", "block")]
    return np.concatenate(gates).astype(np.float32).reshape(1, 1, -1), count


def run_one_step(x, count, c=0.0):
    state = np.zeros((1, count), np.float32)
    operands = {"x": x, "r": np.zeros((4 * count, count), np.float32), "h": state, "c": state + c}
    found = of_one_node("LstmLayer", operands, {}, outputs=7).run(None, operands)
    return dict(zip(FORWARD, found, strict=True))


def test_sigmoid_and_tangent_everywhere():
    """Near 0, where a tangent is what it is of; and far away, where both end."""
    near = np.geomspace(1e-30, 20, 5000)
    x = np.concatenate([-near[::-1], [0], near, [50, 88, 100, 1e4, -50, -88, -100, -1e4]])
    values, count = of_gates(i=x, block=x)
    found = run_one_step(values, count)
    x = values[0, 0, :count].astype(np.float64)
    with np.errstate(over="ignore"):
        expected = sigmoid(x)
    np.testing.assert_allclose(found["gates"][0, 0, :count], expected, rtol=3e-7, atol=1e-37)
    np.testing.assert_allclose(found["block"][0, 0], np.tanh(x), rtol=3e-7)


def test_of_what_is_special():
    special = np.array([np.inf, -np.inf, np.nan, 0, 1e-45, -1e-45, 3e38, -3e38])
    found = run_one_step(*of_gates(i=special, o=special, f=special, block=special))
    expected = [1, 0, np.nan, 0.5, 0.5, 0.5, 1, 0]
    for gate in np.split(found["gates"][0, 0], 3):
        np.testing.assert_allclose(gate, expected, rtol=1e-6, atol=1e-37)
    expected = [1, -1, np.nan, 0, 1e-45, -1e-45, 1, -1]
    np.testing.assert_allclose(found["block"][0, 0], expected, rtol=1e-6, atol=1e-44)


def test_a_value_that_is_nan_stays_with_its_sample():
    operands = forward_operands(3, 9, 20)
    operands["x"][1, 4, 0] = np.nan
    got = of_one_node("LstmLayer", operands, {}, 2, 7).run(None, operands)
    y = dict(zip(FORWARD, got, strict=True))["y"]
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[2, 4]).all()
    assert np.isfinite(np.delete(y, 4, axis=1)).all()


@pytest.mark.parametrize("reverse", DIRECTIONS, ids=["forward", "reverse"])
def test_the_bits_do_not_depend_on_threads(reverse):
    sizes = (4, 33, 130)
    for kind, operands, outputs in (
        ("", forward_operands(*sizes), 7),
        ("Gradient", gradient_operands(sizes, reverse=reverse), 3),
    ):
        one, four = (
            of_one_node(name_of(kind, reverse=reverse), operands, {}, threads, outputs).run(
                None, operands
            )
            for threads in (1, 4)
        )
        assert [a.tobytes() for a in one] == [a.tobytes() for a in four]


@pytest.mark.parametrize("sizes", [(0, 2, 3), (3, 0, 5), (0, 0, 1)], ids=str)
def test_nothing_to_do(sizes):
    operands = forward_operands(*sizes)
    got = of_one_node("LstmLayer", operands, {}, outputs=7).run(None, operands)
    for name, one in zip(FORWARD, got, strict=True):
        expected = forward(**operands, reverse=False)[name]
        np.testing.assert_array_equal(one, expected.astype(np.float32), err_msg=name)
    operands = gradient_operands(sizes, reverse=False)
    got = of_one_node("LstmLayerGradient", operands, {}, outputs=3).run(None, operands)
    for one, want in zip(got, gradient(**operands, reverse=False), strict=True):
        np.testing.assert_array_equal(one, want.astype(np.float32))


GOOD = {"": forward_operands(3, 2, 5), "Gradient": gradient_operands((3, 2, 5), reverse=False)}


@pytest.mark.parametrize(
    ("kind", "operand"),
    [(kind, operand) for kind, operands in GOOD.items() for operand in operands],
)
@pytest.mark.parametrize("change", ["larger", "another rank"])
def test_what_does_not_fit_is_refused(kind, operand, change):
    operands = dict(GOOD[kind])
    good = operands[operand]
    bad = np.repeat(good, 2, axis=-1) if change == "larger" else good[..., None]
    operands[operand] = np.ascontiguousarray(bad)
    session = of_one_node(f"LstmLayer{kind}", operands, {}, outputs=3 if kind else 7)
    with pytest.raises(Exception, match=f"graphopt.LstmLayer{kind}: the shapes"):
        session.run(None, operands)


# Of which there is a kernel in each direction, and of which not.
KNOWN = {
    "LSTM": (9, "", 1),
    "LSTM, reverse": (9, 'direction="reverse"', 1),
    "LSTM of both directions": (9, 'direction="bidirectional"', 2),
}
OTHERS = {
    "LSTM of a few steps": (3, "", 1),
    "LSTM that clips": (9, "clip=1.0", 1),
    "LSTM of coupled gates": (9, "input_forget=1", 1),
    "LSTM of other functions": (9, 'activations=["Sigmoid", "Relu", "Tanh"]', 1),
}


def network(steps, attributes, directions):
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 20]>
        network (float[{steps},N,6] x) => (float[N,{directions * 5}] y) {{
            s, h = LSTM<hidden_size=5{"," * bool(attributes)} {attributes}>(x, w, r, b)
            t = Transpose<perm=[1, 0, 2]>(h) y = Reshape(t, flat) }}""")
    shapes = {"w": (directions, 20, 6), "r": (directions, 20, 5), "b": (directions, 40)}
    for name, shape in shapes.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(normal(*shape), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1]), "flat"))
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("memory", ["fast", "balanced", "low"])
@pytest.mark.parametrize("name", [*KNOWN, *OTHERS])
def test_a_network_trains_the_same_with_kernels_and_without(name, memory):
    steps, attributes, directions = (KNOWN | OTHERS)[name]
    model = network(steps, attributes, directions)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)
    graph = graphopt.training_graph(model, "mse", optimizer, memory=memory)
    fused = kernels_of_same_training(
        graph,
        lambda values: {
            "x": values.standard_normal((steps, 4, 6)).astype(np.float32),
            "labels": values.standard_normal((4, 5 * directions)).astype(np.float32),
        },
    )
    layers = [kernel for kernel in fused if kernel.startswith("LstmLayer")]
    assert len(layers) == (2 * directions if name in KNOWN else 0), fused
