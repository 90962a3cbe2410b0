"""The kernels of GRUs and their gradients, against PyTorch in float64."""

import numpy as np
import onnx
import pytest
import torch

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
FORWARD = ("h", "y", "h_before", "gates", "new", "inner")
DIRECTIONS = [False, True]
WAYS = pytest.mark.parametrize("reverse", DIRECTIONS, ids=["forward", "reverse"])


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def operands_of(steps, batch, units):
    return {
        "x": normal(steps, batch, 3 * units),
        "r": normal(3 * units, units, seed=1) / np.float32(units**0.5),
        "bias": normal(units, seed=2),
        "h": normal(batch, units, seed=3),
    }


def layer(x, r, bias, h, *, reverse):
    """In PyTorch: the results by name, and the leaves, of which `sums` are added to products."""
    leaves = {"x": x, "r": r, "bias": bias, "h": h, "sums": np.zeros(x.shape)}
    leaves = {name: torch.tensor(v, dtype=torch.float64) for name, v in leaves.items()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    lists = {name: [None] * len(x) for name in FORWARD[1:]}
    h = leaves["h"]
    for t in range(len(x))[:: -1 if reverse else 1]:
        sums = h @ leaves["r"].T + leaves["sums"][t]
        s_z, s_r, s_n = sums.chunk(3, dim=1)
        x_z, x_r, x_n = leaves["x"][t].chunk(3, dim=1)
        update, reset = torch.sigmoid(x_z + s_z), torch.sigmoid(x_r + s_r)
        inner = s_n + leaves["bias"]
        new = torch.tanh(x_n + reset * inner)
        gates = torch.cat([update, reset], dim=1)
        after = (1 - update) * new + update * h
        for name, value in zip(FORWARD[1:], (after, h, gates, new, inner), strict=True):
            lists[name][t] = value
        h = after
    return {"h": h} | {name: torch.stack(values) for name, values in lists.items()}, leaves


def gradients_of(sizes, *, reverse):
    """The operands of a gradient, and what is expected of it."""
    operands = operands_of(*sizes)
    found, leaves = layer(**operands, reverse=reverse)
    dy, dh = normal(*sizes, seed=4), normal(*sizes[1:], seed=5)
    loss = (found["y"] * torch.tensor(dy)).sum() + (found["h"] * torch.tensor(dh)).sum()
    expected = torch.autograd.grad(loss, [leaves["x"], leaves["h"], leaves["sums"]])
    names = ("gates", "new", "inner", "h_before")
    kept = {name: found[name].detach().numpy().astype(np.float32) for name in names}
    return {"dy": dy, "dh": dh, **kept, "r": operands["r"]}, expected


def name_of(kind, *, reverse):
    return f"GruLayer{'Reverse' if reverse else ''}{kind}2"


@pytest.mark.parametrize("threads", [1, 3])
@WAYS
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_forward(sizes, reverse, threads):
    operands = operands_of(*sizes)
    got = of_one_node(name_of("", reverse=reverse), operands, {}, threads, 6).run(None, operands)
    expected, _ = layer(**operands, reverse=reverse)
    for name, one in zip(FORWARD, got, strict=True):
        want = expected[name].detach().numpy()
        assert one.shape == want.shape, name
        np.testing.assert_allclose(one, want, rtol=0, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("threads", [1, 3])
@WAYS
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradient(sizes, reverse, threads):
    operands, expected = gradients_of(sizes, reverse=reverse)
    session = of_one_node(name_of("Gradient", reverse=reverse), operands, {}, threads, 3)
    for got, want in zip(session.run(None, operands), expected, strict=True):
        assert got.shape == want.shape
        near = 3e-6 * max(1.0, float(want.abs().max()))
        np.testing.assert_allclose(got, want, rtol=0, atol=near)


@WAYS
def test_the_bits_do_not_depend_on_threads(reverse):
    sizes = (4, 33, 130)
    operands, _ = gradients_of(sizes, reverse=reverse)
    for kind, given, outputs in (("", operands_of(*sizes), 6), ("Gradient", operands, 3)):
        one, four = (
            of_one_node(name_of(kind, reverse=reverse), given, {}, threads, outputs).run(
                None, given
            )
            for threads in (1, 4)
        )
        assert [a.tobytes() for a in one] == [a.tobytes() for a in four]


def test_a_value_that_is_nan_stays_with_its_sample():
    operands = operands_of(3, 9, 20)
    operands["x"][1, 4, 0] = np.nan
    y = of_one_node("GruLayer", operands, {}, 2, 6).run(None, operands)[1]
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[2, 4]).all()
    assert np.isfinite(np.delete(y, 4, axis=1)).all()


def test_no_steps_and_no_samples():
    for sizes in ((0, 2, 3), (3, 0, 5)):
        operands = operands_of(*sizes)
        h, y, *_ = of_one_node("GruLayer", operands, {}, outputs=6).run(None, operands)
        assert y.shape == sizes
        np.testing.assert_array_equal(h, operands["h"])
        steps, batch, units = sizes
        lists = {"dy": 1, "gates": 2, "new": 1, "inner": 1, "h_before": 1}
        given = {name: np.ones((steps, batch, n * units), "f") for name, n in lists.items()}
        given = {"dy": given.pop("dy"), "dh": normal(batch, units), **given, "r": operands["r"]}
        dx, dh, _ = of_one_node("GruLayerGradient", given, {}, outputs=3).run(None, given)
        assert dx.shape == (steps, batch, 3 * units)
        np.testing.assert_array_equal(dh, given["dh"])


GOOD = {"": operands_of(3, 2, 5), "Gradient": gradients_of((3, 2, 5), reverse=False)[0]}


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
    session = of_one_node(f"GruLayer{kind}", operands, {}, outputs=3 if kind else 6)
    with pytest.raises(Exception, match=f"graphopt.GruLayer{kind}: the shapes"):
        session.run(None, operands)


# Of which there is a kernel in each direction, and of which not.
KNOWN = {
    "GRU": (9, "", "b", 1),
    "GRU without bias": (9, "", "", 1),
    "GRU, reverse": (9, ', direction="reverse"', "b", 1),
    "GRU of both directions": (9, ', direction="bidirectional"', "b", 2),
}
OTHERS = {
    "GRU of a few steps": (3, "", "b", 1),
    "GRU that resets the state": (9, ", linear_before_reset=0", "b", 1),
    "GRU that clips": (9, ", clip=1.0", "b", 1),
}


def network(steps, attributes, bias, directions):
    if "linear" not in attributes:
        attributes += ", linear_before_reset=1"
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 20]>
        network (float[{steps},N,6] x) => (float[N,{directions * 5}] y) {{
            s, h = GRU<hidden_size=5{attributes}>(x, w, r, {bias})
            t = Transpose<perm=[1, 0, 2]>(h) y = Reshape(t, flat) }}""")
    shapes = {"w": (directions, 15, 6), "r": (directions, 15, 5), "b": (directions, 30)}
    for name, shape in shapes.items():
        if name in model.graph.node[0].input:
            model.graph.initializer.append(onnx.numpy_helper.from_array(normal(*shape), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, -1]), "flat"))
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("memory", ["fast", "balanced", "low"])
@pytest.mark.parametrize("name", [*KNOWN, *OTHERS])
def test_a_network_trains_the_same_with_kernels_and_without(name, memory):
    steps, _, _, directions = settings = (KNOWN | OTHERS)[name]
    model = network(*settings)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3)
    graph = graphopt.training_graph(model, "mse", optimizer, memory=memory)
    fused = kernels_of_same_training(
        graph,
        lambda values: {
            "x": values.standard_normal((steps, 4, 6)).astype(np.float32),
            "labels": values.standard_normal((4, 5 * directions)).astype(np.float32),
        },
    )
    layers = [kernel for kernel in fused if kernel.startswith("GruLayer")]
    assert len(layers) == (2 * directions if name in KNOWN else 0), fused
