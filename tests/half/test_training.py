"""Training in half precision: the values, the digits, and what it is combined with."""

import functools

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser

import graphopt
from graphopt import DynamicLossScale, losses
from graphopt.examples import digits, digits_cnn
from models import torch_peers
from models.zoo import ZOO
from tests.helpers.batches import batches

UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
HALVES = pytest.mark.parametrize("precision", UNIT)
CUDA = "CUDAExecutionProvider"


def built(precision, loss="cross_entropy", model=None, graph=None, **options):
    model = digits_cnn.build() if model is None else model
    settings = {"learning_rate": 1e-3, "initial_mean_square": 0.0, "epsilon": 1e-8} | options
    optimizer = graphopt.RMSProp(graphopt.parameters(model), **settings)
    return graphopt.training_graph(model, loss, optimizer, precision=precision, **(graph or {}))


def trained(precision, count, **options):
    session = graphopt.Session(built(precision, **options))
    for batch in batches(count):
        session.step(batch)
    return session


# Values -------------------------------------------------------------------------------------


@functools.cache
def feeds(name):
    return ZOO[name].feeds(np.random.default_rng(0), 8)


def of_torch(name, dtype=None, scale=1.0):
    """Loss and gradients of a network in float64, or as PyTorch's autocast computes them."""
    module = torch_peers.peer(name, ZOO[name].build())
    given = [torch.tensor(value) for value in feeds(name).values()]
    if dtype is None:
        module = module.double()
        given = [value.double() if value.is_floating_point() else value for value in given]
    x, labels = given
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        result = module(x)
    result = result.double() if dtype is None else result.float()
    loss = torch_peers.LOSSES[ZOO[name].loss](result, labels)
    (loss * scale).backward()
    named = module.named_parameters()
    return loss.item(), {n: p.grad.double().numpy() / scale for n, p in named}


def distance(found, exact):
    """Of all gradients together, relative to their norm."""
    squares = [np.sum((found[name] - exact[name]) ** 2) for name in exact]
    return np.sqrt(sum(squares) / sum(np.sum(value**2) for value in exact.values()))


@pytest.mark.any_runtime
@HALVES
@pytest.mark.parametrize("name", ["mlp", "digits_cnn", "resnet", "transformer", "mlp_mse"])
def test_gradients_are_as_exact_as_those_of_autocast(name, precision):
    """Against float64: no further away than PyTorch's, but for a third of that."""
    scale = 1024.0 if precision == "float16" else 1.0
    options = {"loss": ZOO[name].loss, "model": ZOO[name].build(), "loss_scale": scale}
    session = graphopt.Session(built(precision, graph={"gradient_outputs": True}, **options))
    reported = session.step(feeds(name))
    loss, exact = of_torch(name)
    found = {p: reported[f"{p}_grad"].astype(np.float64) for p in exact}
    of_autocast = of_torch(name, getattr(torch, precision), scale)[1]
    assert distance(found, exact) <= 4 / 3 * distance(of_autocast, exact) + UNIT[precision] / 8
    assert distance(found, exact) > UNIT[precision] / 64  # it was rounded at all
    np.testing.assert_allclose(reported["loss"], loss, rtol=2 * UNIT[precision])


def linear():
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        linear (float[N,24] x) => (float[N,6] y) { h = MatMul(x, w) y = Add(h, b) }"""
    )
    rng = np.random.default_rng(1)
    for name, shape in {"w": (24, 6), "b": (6,)}.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.mark.quick
@HALVES
def test_values_of_a_layer(precision):
    """In float64, rounded where half precision rounds: operands, results, and their gradients."""

    def rounded(value):
        return torch.tensor(value).to(getattr(torch, precision)).double().numpy()

    model, scale = linear(), 64.0
    graph = built(precision, "mse", model, {"gradient_outputs": True}, loss_scale=scale)
    rng = np.random.default_rng(2)
    x, labels = (rng.standard_normal((16, size)).astype(np.float32) for size in (24, 6))
    reported = graphopt.Session(graph).step({"x": x, "labels": labels})
    w, b = (rounded(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer)
    y = rounded(rounded(rounded(x) @ w) + b)
    unit = 2 * UNIT[precision]  # sums in float32 may be rounded to the next number
    np.testing.assert_allclose(reported["y"], y, rtol=unit, atol=unit)
    dy = rounded(scale * 2 * (reported["y"] - labels) / y.size)
    for name, expected in {"w": rounded(x).T @ dy, "b": dy.sum(axis=0)}.items():
        found = reported[f"{name}_grad"] * scale
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, rounded(found))  # it has no more digits
        np.testing.assert_allclose(found, expected, rtol=unit, atol=unit / 8, err_msg=name)


@pytest.mark.any_runtime
@pytest.mark.parametrize("name", ["mlp", "digits_cnn", "transformer"])
def test_the_formulations_for_cuda_compute_the_same(name):
    """On the CPU, where the runtime itself computes in float32 what it lacks in float16."""
    options = {"loss": ZOO[name].loss, "model": ZOO[name].build(), "loss_scale": 1024.0}
    found = []
    for provider in (CUDA, "CPUExecutionProvider"):
        session = graphopt.Session(built("float16", graph={"provider": provider}, **options))
        found.append([session.step(feeds(name))["loss"] for _ in range(3)])
    np.testing.assert_allclose(*found, rtol=5e-3)


# Digits -------------------------------------------------------------------------------------


def accuracy(session, path, average=False):
    """Of the exported model, on the pictures that it was not trained on."""
    session.export(path, average=average)
    model = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = model.run(None, {"x": digits.load().test.x})
    return np.mean(logits.argmax(axis=1) == digits.load().test.labels)


def test_digits_are_learned_as_in_float32(tmp_path):
    found = {}
    for precision in (None, *UNIT):
        scale = DynamicLossScale() if precision == "float16" else 1.0
        average = graphopt.ParameterAverage(0.97, warm_up=True)
        options = {"learning_rate": 3e-3, "epsilon": 1e-5, "average": average}
        session = trained(precision, 200, loss_scale=scale, **options)
        found[precision] = accuracy(session, tmp_path / f"{precision}.onnx", average=True)
    assert found[None] > 0.97
    for precision in UNIT:
        assert found[precision] >= found[None] - 0.01, found


def little(op, logits):
    """A loss whose gradients are small."""
    return op.Mul(losses.cross_entropy(op, logits), 1e-7)


@pytest.mark.any_runtime
def test_small_gradients_need_a_loss_scale_in_float16(tmp_path):
    """RMSProp does not mind how large gradients are, unless float16 rounds them to 0."""
    found = {}
    for name, precision, scale in (
        ("float32", None, 1.0),
        ("float16", "float16", 1.0),
        ("float16, scaled", "float16", DynamicLossScale(growth_interval=10)),
        ("bfloat16", "bfloat16", 1.0),
    ):
        options = {"loss": little, "epsilon": 1e-24, "loss_scale": scale}
        session = trained(precision, 120, **options)
        found[name] = accuracy(session, tmp_path / "trained.onnx")
    assert found["float32"] > 0.9
    assert found["float16"] < 0.3
    assert found["float16, scaled"] >= found["float32"] - 0.02
    assert found["bfloat16"] >= found["float32"] - 0.02


# What it is combined with -------------------------------------------------------------------


def test_a_scale_that_is_too_large_is_found():
    """Gradients overflow on their way, in float16: the step is skipped, and the scale halved."""
    scale = DynamicLossScale(initial=2.0**24, growth_interval=1000)
    session = graphopt.Session(built("float16", loss_scale=scale))
    before = session.state
    (batch,) = batches(1)
    assert not session.step(batch)["updated"]
    after = session.state
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"loss_scale", "skipped_steps"}
    assert after["loss_scale"] == 2.0**23
    for _ in range(20):
        updated = session.step(batch)["updated"]
    assert updated
    assert session.state["skipped_steps"] < 20


PARAMETERS = {tensor.name for tensor in digits_cnn.build().graph.initializer}
EVERYTHING = {
    "momentum": 0.9,
    "centered": True,
    "weight_decay": 1e-4,
    "clip_norm": 1.0,
    "average": graphopt.ParameterAverage(0.9),
    "skip_on_overflow": True,
}


@HALVES
@pytest.mark.parametrize("layout", ["chunks", "foreach"])
def test_everything_at_once(precision, layout):
    """The state is float32, and close to what float32 gives."""
    scale = DynamicLossScale(initial=1024.0) if precision == "float16" else 1.0
    states = []
    for kind in (None, precision):
        graph = {"accumulation": 2, "gradient_outputs": True, "layout": layout, "memory": "low"}
        session = trained(kind, 12, graph=graph, loss_scale=scale, **EVERYTHING)
        states.append(session.state)
    expected, found = states
    assert found["global_step"] == 6
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        if value.dtype == np.float32:
            apart = np.linalg.norm(value - expected[name]) / np.linalg.norm(expected[name])
            assert apart < (0.03 if name.endswith("weight") and name in PARAMETERS else 0.5), name


@pytest.mark.any_runtime
@pytest.mark.parametrize("memory", ["balanced", "low"])
def test_memory_does_not_change_values(memory):
    found = []
    for kept in ("fast", memory):
        graph = {"memory": kept, "gradient_outputs": True}
        model = ZOO["transformer"].build()
        session = graphopt.Session(built("bfloat16", model=model, graph=graph))
        found.append(session.step(feeds("transformer")))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.any_runtime
def test_a_checkpoint_knows_the_precision(tmp_path):
    session = trained("bfloat16", 1)
    session.save_checkpoint(tmp_path / "half.safetensors")
    other = trained(None, 0)
    with pytest.raises(ValueError, match='precision is "bfloat16" in it, but "float32"'):
        other.load_checkpoint(tmp_path / "half.safetensors")
    other.load_checkpoint(tmp_path / "half.safetensors", strict=False)
    for name, value in session.state.items():
        np.testing.assert_array_equal(other.state[name], value, err_msg=name)


# What is refused ----------------------------------------------------------------------------


@pytest.mark.any_runtime
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "half"}, ValueError, "precision: got 'half' .*, expected 'float16' or"),
        ({"precision": 16}, TypeError, "precision: got 16"),
        (
            {"graph": {"provider": "DmlExecutionProvider"}, "precision": "float16"},
            ValueError,
            "build the graph for CUDAExecutionProvider or for CPUExecutionProvider",
        ),
        (
            {"graph": {"portable": False}, "precision": "float16"},
            ValueError,
            "precision: has no effect beside portable=False",
        ),
    ],
)
def test_refused(options, error, message):
    with pytest.raises(error, match=message):
        built(**options)


@pytest.mark.any_runtime
def test_a_graph_for_another_provider_says_so():
    graph = built("bfloat16", graph={"provider": CUDA})
    with pytest.raises(ValueError, match="build it with provider='CPUExecutionProvider'"):
        graphopt.Session(graph)
