"""Models in float64 are trained in float64, states and hyperparameters included."""

import numpy as np
import pytest
import torch

import graphopt
from graphopt import DynamicLossScale, Parameter, ParameterAverage, schedules
from graphopt.reference import ReferenceRMSProp
from models import torch_peers
from models.zoo import ZOO
from tests.helpers.in_float64 import in_float64

SHAPES = {"a": (3, 5), "b": (1000,), "c": (4,), "d": ()}
OPTIONS = {
    "plain": {},
    "centered": {"momentum": 0.9, "centered": True},
    "nesterov": {"momentum": 0.5, "nesterov": True, "learning_rate_inside_moment": False},
    "outside": {"centered": True, "epsilon_inside_root": False, "loss_scale": 8.0},
    "norm": {"weight_decay": 1e-3, "clip_norm": 0.5},
    "value": {"clip_value": 0.1, "skip_on_overflow": True},
    "average": {"average": ParameterAverage(0.9, warm_up=True), "weight_decay": 0.1},
    "dynamic scale": {"loss_scale": DynamicLossScale(16.0)},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "schedule": {"learning_rate": schedules.CosineDecayLR(1e-4, 1e-2, 100), "momentum": 0.9},
    "list": {"learning_rate": [0.1, 0.01, 0.003, 0.001, 0.0003, 0.0001]},
}
EXACT = {"rtol": 1e-12, "atol": 1e-15}


@pytest.mark.parametrize(
    ("layout", "accumulation"),
    [("chunks", None), ("foreach", None), ("separate", 2), ("buckets", 2)],
)
def test_updates(layout, accumulation):
    """Against NumPy in float64; float32 would be off by 1e-7."""
    rng = np.random.default_rng(0)
    parameters = [Parameter(name, shape, "float64") for name, shape in SHAPES.items()]
    for name, given in OPTIONS.items():
        optimizer = graphopt.RMSProp(parameters, **{"learning_rate": 0.003} | given)
        graph = graphopt.update_graph(optimizer, layout=layout, accumulation=accumulation)
        initial = {p.name: np.asarray(rng.standard_normal(p.shape)) for p in parameters}
        session = graphopt.Session(graph, initial)
        reference = ReferenceRMSProp(optimizer, initial)
        for _ in range(3):
            several = [
                {n: np.asarray(rng.standard_normal(shape)) for n, shape in SHAPES.items()}
                for _ in range(accumulation or 1)
            ]
            for gradients in several:
                scale = float(session.state.get("loss_scale", optimizer.carried_loss_scale))
                session.step({f"{n}_grad": np.asarray(g * scale) for n, g in gradients.items()})
            mean = {n: sum(g[n] for g in several) / len(several) for n in SHAPES}
            times = scale
            reference.step({n: g * times for n, g in mean.items()})
        state = session.state
        of_parameters = {n for n in state if n.rpartition(".")[2] in SHAPES}
        assert {state[n].dtype.name for n in of_parameters} == {"float64"}
        for key in of_parameters & reference.state.keys():
            np.testing.assert_allclose(state[key], reference.state[key], **EXACT, err_msg=name)


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_elements_that_the_guard_keeps(momentum, outside, with_kernels):
    """Of a variance that is negative there is no root; the element stays what it is."""
    optimizer = graphopt.RMSProp(
        [Parameter("w", (3,), "float64")],
        0.1,
        centered=True,
        momentum=momentum,
        epsilon_inside_root=not outside,
        epsilon=1e-8,
    )
    start = {"w": np.ones(3)}
    session = graphopt.Session(graphopt.update_graph(optimizer), start, kernels=with_kernels)
    reference = ReferenceRMSProp(optimizer, start)
    states = {"mean_square.w": np.array([0.01, 0.0, 30.0]), "mean_grad.w": np.array([5.0, 0, 1])}
    session.load_state({**session.state, **states})
    reference.state |= states
    gradient = np.array([1.0, 0.0, 2.0])
    session.step({"w_grad": gradient})
    reference.step({"w": gradient})
    assert (session.state["w"][:2] == 1).all()
    for name in ("w", *states):
        np.testing.assert_allclose(session.state[name], reference.state[name], **EXACT)


@pytest.mark.parametrize("name", ["mlp", "mlp_mse", "mlp_bce"])
def test_gradients_are_those_of_pytorch(name):
    """And the network after some steps is what they and NumPy make of it."""
    model, entry = in_float64(ZOO[name].build()), ZOO[name]
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model), 1e-3, momentum=0.9, initial_mean_square=0.0, epsilon=1e-8
    )
    graph = graphopt.training_graph(model, entry.loss, optimizer, gradient_outputs=True)
    session = graphopt.Session(graph)
    module = torch_peers.peer(name, entry.build()).double()
    reference = ReferenceRMSProp(
        optimizer, {n: p.detach().numpy() for n, p in module.named_parameters()}
    )
    rng = np.random.default_rng(0)
    for _ in range(4):
        feeds = {
            key: value.astype(np.float64) if value.dtype == np.float32 else value
            for key, value in entry.feeds(rng, 8).items()
        }
        reported = session.step(feeds)
        x, labels = (torch.tensor(value) for value in feeds.values())
        module.zero_grad()
        loss = torch_peers.LOSSES[entry.loss](module(x), labels)
        loss.backward()
        assert reported["loss"].dtype == np.float64
        np.testing.assert_allclose(reported["loss"], loss.item(), **EXACT)
        gradients = {n: p.grad.numpy() for n, p in module.named_parameters()}
        for key, gradient in gradients.items():
            np.testing.assert_allclose(reported[f"{key}_grad"], gradient, rtol=1e-10, atol=1e-13)
        reference.step(gradients)
        with torch.no_grad():
            for key, parameter in module.named_parameters():
                parameter.copy_(torch.tensor(reference.state[key]))
    for key, value in session.state.items():
        if key in reference.state:
            np.testing.assert_allclose(value, reference.state[key], rtol=1e-9, atol=1e-12)


def test_it_is_verified_and_inspected(tmp_path):
    model = in_float64(ZOO["mlp"].build())
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 1e-3, centered=True, momentum=0.9)
    graph = graphopt.training_graph(model, "cross_entropy", optimizer)
    found = graphopt.inspect(graph)
    assert found.model.precision == ("float64",)
    assert found.optimizer.centered
    assert found.hazards == ()
    assert {state.dtype for state in found.state} == {"float64", "int64"}
    checked = graphopt.verify(graph)
    assert checked.verified, checked.differences
    session = graphopt.Session(graph)
    feeds = ZOO["mlp"].feeds(np.random.default_rng(0), 4)
    session.step({"x": feeds["x"].astype(np.float64), "labels": feeds["labels"]})
    session.save_checkpoint(tmp_path / "double.safetensors")
    other = graphopt.Session(graph)
    other.load_checkpoint(tmp_path / "double.safetensors")
    for name, value in session.state.items():
        np.testing.assert_array_equal(other.state[name], value, err_msg=name)


@pytest.mark.any_runtime
def test_float64_beside_another_dtype_is_refused():
    mixed = [Parameter("w", (3,), "float64"), Parameter("b", (3,))]
    with pytest.raises(ValueError, match="'w' is float64 and 'b' is float32, but an update"):
        graphopt.RMSProp(mixed)


@pytest.mark.any_runtime
def test_what_the_runtime_lacks_is_named():
    model = in_float64(ZOO["digits_cnn"].build())
    graph = graphopt.training_graph(
        model, "cross_entropy", graphopt.RMSProp(graphopt.parameters(model))
    )
    with pytest.raises(ValueError, match=r"Conv.*float64.*; convert the model to float32"):
        graphopt.Session(graph)


@pytest.mark.any_runtime
def test_precision_is_for_float32():
    model = in_float64(ZOO["mlp"].build())
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    with pytest.raises(ValueError, match=r"precision: got 'float16', but parameter .* is float64"):
        graphopt.training_graph(model, "cross_entropy", optimizer, precision="float16")
