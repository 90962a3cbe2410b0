"""Skipped steps, loss scales and clipping, in every combination of two, against float64."""

import itertools

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import DynamicLossScale, Parameter, RMSProp, Session, schedules, update_graph
from graphopt.reference import ReferenceRMSProp
from models.zoo import ZOO

PARAMETERS = [
    Parameter("conv", (4, 3, 3, 3), op_type="Conv"),
    Parameter("bias", (4,)),
    Parameter("fc", (30, 7)),
    Parameter("scalar", ()),
]
CHOICES = {
    "loss_scale": [
        {},
        {"loss_scale": 8.0},
        {"loss_scale": DynamicLossScale(1024.0, growth_interval=5)},
        {"loss_scale": schedules.FromCaller("loss_scale")},
    ],
    "skip": [{"skip_on_overflow": True}, {}],
    "clip": [
        {},
        {"clip_norm": 5.0},
        {"clip_norm": 2.0, "clip_norm_per": "group"},
        {"clip_norm": 1.0, "clip_norm_per": "parameter"},
        {"clip_value": 0.7},
    ],
    "update": [
        {},
        {"centered": True, "momentum": 0.9, "epsilon": 1e-3},
        {"momentum": 0.9, "nesterov": True, "decoupled_weight_decay": True, "weight_decay": 0.01},
    ],
    "groups": ["none", "decay", "centralized"],
    "mask": [False, True],
    "layout": ["chunks", "buckets", "separate", "foreach"],
    "kernels": [True, False],
}


def covering():
    """Rows of choices such that every two choices of different columns stand in one of them."""
    rng = np.random.default_rng(0)
    sizes = [len(choices) for choices in CHOICES.values()]
    columns = itertools.combinations(range(len(sizes)), 2)
    open_pairs = {
        (a, i, b, j) for a, b in columns for i in range(sizes[a]) for j in range(sizes[b])
    }
    rows = []
    while open_pairs:
        tried = [[int(rng.integers(size)) for size in sizes] for _ in range(200)]
        best = max(tried, key=lambda row: len(pairs(row) & open_pairs))
        open_pairs -= pairs(best)
        rows.append(tuple(best))
    return rows


def pairs(row):
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(range(len(row)), 2)}


def chosen(row):
    names = zip(CHOICES.items(), row, strict=True)
    return {name: choices[index] for (name, choices), index in names}


def optimizer(choice):
    settings = choice["loss_scale"] | choice["skip"] | choice["clip"] | choice["update"]
    params = PARAMETERS
    if choice["groups"] != "none":
        first = {"params": PARAMETERS[:2], "lr": 0.02, "weight_decay": 0.1}
        first["grad_centralization"] = choice["groups"] == "centralized"
        params = [first, {"params": PARAMETERS[2:]}]
    return RMSProp(params, schedules.InverseDecayLR(0.01, 0.1, 3), **settings)


def start():
    rng = np.random.default_rng(1)
    return {p.name: np.array(rng.normal(size=p.shape), np.float32) for p in PARAMETERS}


def drawn(rng, scale):
    """Gradients with their loss scale, now and then infinite or NaN in an element of one."""
    gradients = {p.name: np.array(rng.normal(size=p.shape) * scale, np.float32) for p in PARAMETERS}
    if rng.random() < 0.15:
        array = gradients[PARAMETERS[rng.integers(4)].name].reshape(-1)
        array[rng.integers(array.size)] = rng.choice([np.inf, -np.inf, np.nan])
    return gradients


ROWS = covering()


@pytest.mark.parametrize(
    "row",
    [  # the oldest runtime runs every third
        pytest.param(
            row, id="".join(map(str, row)), marks=pytest.mark.any_runtime if at % 3 else ()
        )
        for at, row in enumerate(ROWS)
    ],
)
def test_against_float64(row):
    choice = chosen(row)
    opt = optimizer(choice)
    graph = update_graph(opt, layout=choice["layout"], group_mask=choice["mask"])
    session = Session(graph, start(), kernels=choice["kernels"])
    oracle = ReferenceRMSProp(opt, start())
    rng = np.random.default_rng(2)
    skips = opt.skip_on_overflow
    for _ in range(200 if skips else 40):
        scale = opt.loss_scale
        if isinstance(scale, DynamicLossScale):
            scale = float(session.state["loss_scale"])
        elif not isinstance(scale, float):
            scale = float(2.0 ** rng.integers(-3, 12))
        gradients = drawn(rng, scale)
        if not skips:
            gradients = {
                name: np.nan_to_num(g, posinf=1, neginf=1) for name, g in gradients.items()
            }
        enabled = [bool(rng.random() < 0.7) for _ in opt.groups] if choice["mask"] else None
        feeds = {f"{name}_grad": array for name, array in gradients.items()}
        if choice["mask"]:
            feeds["group_mask"] = np.array(enabled)
        if not isinstance(opt.loss_scale, float | DynamicLossScale):
            feeds["loss_scale"] = np.array(scale, np.float32)
        before = session.state
        outputs = session.step(feeds)
        updated = oracle.step(gradients, enabled, scale)
        assert outputs["updated"] == updated
        if opt.clip_norm is not None and updated:
            np.testing.assert_allclose(outputs["gradient_norm"], oracle.gradient_norm, rtol=1e-6)
        if not updated:
            for name, array in session.state.items():
                if name not in ("loss_scale", "loss_scale_steps", "skipped_steps"):
                    assert array.tobytes() == before[name].tobytes(), name
    for name, array in session.state.items():
        np.testing.assert_allclose(array, oracle.state[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.any_runtime
def test_every_pair_is_there():
    assert len(ROWS) < 40
    found = set().union(*map(pairs, ROWS))
    sizes = [len(choices) for choices in CHOICES.values()]
    assert len(found) == sum(a * b for a, b in itertools.combinations(sizes, 2))


@pytest.mark.parametrize("per", ["all", "parameter"])
def test_clipping_is_that_of_pytorch(per):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    parameters = [Parameter("a", (300, 40)), Parameter("b", (50,))]
    opt = RMSProp(
        parameters, 0.1, decay=0.0, epsilon=1e-30, clip_norm=3.0, clip_norm_per=per, centered=True
    )
    # Of a mean gradient that starts at zero, decay 0 leaves the gradient itself.
    session = Session(
        update_graph(opt), {p.name: np.zeros(p.shape, np.float32) for p in parameters}
    )
    gradients = {p.name: rng.normal(size=p.shape).astype(np.float32) for p in parameters}
    tensors = {name: torch.nn.Parameter(torch.zeros(g.shape)) for name, g in gradients.items()}
    for name, tensor in tensors.items():
        tensor.grad = torch.from_numpy(gradients[name].copy())
    outputs = session.step({f"{name}_grad": g for name, g in gradients.items()})
    together = [list(tensors.values())] if per == "all" else [[t] for t in tensors.values()]
    norms = [float(torch.nn.utils.clip_grad_norm_(several, 3.0)) for several in together]
    np.testing.assert_allclose(outputs["gradient_norm"], np.linalg.norm(norms), rtol=1e-6)
    for name, tensor in tensors.items():
        got = session.state[f"mean_grad.{name}"]
        np.testing.assert_allclose(got, tensor.grad.numpy(), rtol=1e-6, err_msg=name)


def trained(**settings):
    """A network with batch normalization."""
    entry = ZOO["resnet"]
    model = entry.build()
    opt = RMSProp(graphopt.parameters(model), 1e-3, epsilon=1e-3, **settings)
    return entry, graphopt.training_graph(model, entry.loss, opt)


@pytest.mark.parametrize("pixel", [np.nan, np.inf], ids=str)
def test_a_bad_batch_changes_nothing(pixel):
    """No parameter, no state and no running statistic."""
    entry, graph = trained(skip_on_overflow=True)
    session = Session(graph)
    rng = np.random.default_rng(0)
    session.step(entry.feeds(rng, 4))
    before = session.state
    bad = dict(entry.feeds(rng, 4))
    name = session.inputs[0].name
    bad[name] = bad[name].copy()
    bad[name].reshape(-1)[3] = pixel
    assert not session.step(bad)["updated"]
    after = session.state
    assert after.pop("skipped_steps") == 1
    for state, array in after.items():
        assert array.tobytes() == before[state].tobytes(), state
    assert session.step(entry.feeds(rng, 4))["updated"]


@pytest.mark.parametrize("scale", [DynamicLossScale(2.0**10), 2.0**10], ids=["dynamic", "number"])
def test_the_loss_is_reported_without_its_scale(scale):
    entry, graph = trained(loss_scale=scale, clip_norm=1e6)
    _, plain = trained(clip_norm=1e6)
    feeds = entry.feeds(np.random.default_rng(0), 4)
    outputs, expected = (Session(g).step(feeds) for g in (graph, plain))
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-5)


WRONG = {
    "clip_norm": ({"clip_norm": 0.0}, ValueError, "clip_norm: got 0.0"),
    "clip_norm text": ({"clip_norm": "1"}, TypeError, "clip_norm: got '1'"),
    "clip_value": ({"clip_value": -1.0}, ValueError, "clip_value: got -1.0"),
    "both": ({"clip_norm": 1.0, "clip_value": 1.0}, ValueError, "clip by one of them"),
    "per": ({"clip_norm": 1.0, "clip_norm_per": "layer"}, ValueError, "clip_norm_per: got 'layer'"),
    "per alone": ({"clip_norm_per": "group"}, ValueError, "no effect without clip_norm"),
    "skip": ({"skip_on_overflow": 1}, TypeError, "skip_on_overflow: got 1"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("settings", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(settings, kind, message):
    with pytest.raises(kind, match=message):
        RMSProp(PARAMETERS, **settings)


class TestManySkips:
    def session(self, limit, **settings):
        opt = RMSProp(PARAMETERS[3:], 0.1, skip_on_overflow=True, **settings)
        return Session(update_graph(opt), {"scalar": np.array(1, np.float32)}, max_skips=limit)

    def step(self, session, value):
        return session.step({"scalar_grad": np.array(value, np.float32)})["updated"]

    def test_the_last_of_too_many_raises(self):
        session = self.session(3)
        for value in (np.nan, np.inf, 1, np.nan, np.nan):
            assert self.step(session, value) == (value == 1)
        before = session.state
        with pytest.raises(FloatingPointError, match="3 steps in a row were skipped"):
            self.step(session, np.nan)
        assert session.state["skipped_steps"] == 5
        assert session.state["scalar"] == before["scalar"]
        assert self.step(session, 1)

    def test_any_number_by_default(self):
        session = self.session(None)
        assert not any(self.step(session, np.nan) for _ in range(50))

    @pytest.mark.parametrize(("limit", "kind"), [(0, ValueError), (1.0, TypeError)])
    def test_wrong_limit(self, limit, kind):
        with pytest.raises(kind, match=f"max_skips: got {limit}"):
            self.session(limit)

    def test_a_graph_that_skips_none(self):
        graph = update_graph(RMSProp(PARAMETERS[3:]))
        with pytest.raises(ValueError, match="this graph skips no step"):
            Session(graph, {"scalar": np.array(1, np.float32)}, max_skips=3)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-40, np.nan, np.inf])
def test_a_fed_scale_that_is_none(scale):
    opt = RMSProp(PARAMETERS[3:], loss_scale=schedules.FromCaller("loss_scale"))
    session = Session(update_graph(opt), {"scalar": np.array(1, np.float32)})
    feeds = {"scalar_grad": np.array(1, np.float32), "loss_scale": np.array(scale, np.float32)}
    with pytest.raises(ValueError, match=r"feed 'loss_scale': got .* expected a finite number >= "):
        session.step(feeds)
    assert session.state["scalar"] == 1


def scalar_session(**settings):
    opt = RMSProp(PARAMETERS[3:], 0.1, **settings)
    return Session(update_graph(opt), {"scalar": np.array(1, np.float32)})


def test_a_scale_stays_a_number_that_divides():
    """After more overflows than float32 has exponents, a good step is a good step."""
    session = scalar_session(loss_scale=DynamicLossScale(growth_interval=1))
    for _ in range(200):
        session.step({"scalar_grad": np.array(np.nan, np.float32)})
    scale = session.state["loss_scale"]
    assert np.isfinite(1 / scale)
    assert session.step({"scalar_grad": np.array(scale, np.float32)})["updated"]
    assert np.isfinite(session.state["scalar"])
    assert session.state["loss_scale"] == 2 * scale


def test_a_norm_that_overflows_is_an_overflow():
    """The squares overflow before the gradients do; clipped to zero, they would train nothing."""
    session = scalar_session(loss_scale=DynamicLossScale(2.0**66), clip_norm=1.0)
    assert not session.step({"scalar_grad": np.array(2.0**66, np.float32)})["updated"]
    scale = float(session.state["loss_scale"])
    assert scale == 2.0**65
    for _ in range(3):
        scale = float(session.state["loss_scale"])
        session.step({"scalar_grad": np.array(scale, np.float32)})
    assert session.state["global_step"] > 0
    assert session.state["scalar"] != 1


def test_skips_before_a_checkpoint_do_not_count(tmp_path):
    path = tmp_path / "c.safetensors"
    bad, good = ({"scalar_grad": np.array(value, np.float32)} for value in (np.nan, 1))
    session = scalar_session(skip_on_overflow=True)
    session.step(bad)
    session.save_checkpoint(path)
    opt = RMSProp(PARAMETERS[3:], 0.1, skip_on_overflow=True)
    other = Session(update_graph(opt), {"scalar": np.array(1, np.float32)}, max_skips=2)
    other.step(bad)
    other.load_checkpoint(path)
    assert other.step(good)["updated"]
    assert not other.step(bad)["updated"]


@pytest.mark.any_runtime
def test_an_input_of_the_model_is_not_taken_for_the_scale():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N,2] x, float loss_scale) => (float[N,1] y)
        <float[2,1] w = {1, 2}> { z = MatMul(x, w) y = Mul(z, loss_scale) }"""
    )
    opt = RMSProp(graphopt.parameters(model), loss_scale=DynamicLossScale())
    with pytest.raises(ValueError, match="has a value named 'loss_scale' already"):
        graphopt.training_graph(model, "mse", opt)


@pytest.mark.any_runtime
def test_one_input_is_not_both_rate_and_scale():
    fed = schedules.FromCaller("r")
    with pytest.raises(ValueError, match=r"loss_scale: got .* give it another name"):
        RMSProp(PARAMETERS, fed, loss_scale=fed)


def test_statistics_of_a_batch_that_overflow():
    """Where no gradient does: running statistics stay what they are."""
    entry, graph = trained(skip_on_overflow=True)
    session = Session(graph)
    batch = entry.feeds(np.random.default_rng(0), 4)
    session.step(dict(batch) | {"x": batch["x"] * np.float32(1e19)})
    assert all(np.isfinite(array).all() for array in session.state.values())
    assert session.step(batch)["updated"]


@pytest.mark.any_runtime
def test_gradients_that_are_given_carry_no_dynamic_scale():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[2] w) => (float[2] g) { g = Neg(w) }"""
    )
    opt = RMSProp([Parameter("w", (2,))], loss_scale=DynamicLossScale())
    with pytest.raises(ValueError, match="which do not carry it"):
        graphopt.training_graph(model, None, opt, gradients={"w": "g"})


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 1.0}], ids=str)
@pytest.mark.parametrize("layout", ["chunks", "separate", "foreach"])
def test_half_precision_is_looked_at_as_it_is_applied(layout, settings):
    """A gradient that float32 holds and float16 does not is Inf for neither or for both."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> net (float[N,2] x) => (float[N,1] y)
        <float16[2,1] w> { v = Cast<to = 1>(w) y = MatMul(x, v) }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 1), np.float16), "w"))
    del model.graph.initializer[:-1]
    settings = settings | {"loss_scale": 4096.0, "skip_on_overflow": True}
    opt = RMSProp(graphopt.parameters(model), 1e-3, **settings)
    session = Session(graphopt.training_graph(model, "mse", opt, layout=layout))
    batch = {"x": np.array([[30, 40]], np.float32), "labels": np.array([[-100]], np.float32)}
    for _ in range(3):
        before = session.state
        updated = session.step(batch)["updated"]
        after = session.state
        assert np.isfinite(after["w"]).all()
        assert np.isfinite(after["mean_square.w"]).all()
        assert updated == (before["w"].tobytes() != after["w"].tobytes())
