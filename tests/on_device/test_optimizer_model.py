"""The optimizer model of ONNX Runtime's on-device training, run by ONNX Runtime."""

import importlib
import json

import numpy as np
import pytest
from onnx import helper

import graphopt
from graphopt import schedules
from graphopt.on_device import _native_update, _optimizer_model, checkpoint
from graphopt.reference import ReferenceRMSProp
from tests.helpers.environments import HAS_TRAINING_PACKAGE, needs_training_package
from tests.helpers.on_device import FALLING, SHAPES, VARIANTS, given, linear_in, parameters, worst

if HAS_TRAINING_PACKAGE:
    from tests.helpers.device import Device


def normal(rng, shapes):
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


class Run:
    """ONNX Runtime and the reference, side by side."""

    def __init__(self, folder, opt, seed=0):
        self.folder, self.opt = folder, opt
        self.rng = np.random.default_rng(seed)
        self.shapes = {parameter.name: parameter.shape for parameter in opt.params}
        self.initial = normal(self.rng, self.shapes)
        self.files = graphopt.export_on_device(
            linear_in(self.initial), "objective", opt, folder / "device", optimizer_model=True
        )
        self.device = Device(self.files)
        self.reference = ReferenceRMSProp(opt, self.initial)

    def step(self, gradients=None):
        gradients = gradients or normal(self.rng, self.shapes)
        self.device.step(given(gradients, self.opt.loss_scale))
        self.reference.step(gradients)

    def check(self, rtol=2e-5, atol=2e-6):
        """All that ONNX Runtime keeps is what the reference has."""
        state, expected = self.device.state, self.reference.state
        kept = {f"{kind}.{name}" for kind in self.opt.states for name in self.shapes}
        assert state.keys() == self.shapes.keys() | kept | {"global_step"}
        for name, value in state.items():
            assert value.shape == np.shape(expected[name]), name
            np.testing.assert_allclose(value, expected[name], rtol, atol, err_msg=name)


@pytest.mark.quick
@needs_training_package
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_variants(settings, tmp_path):
    run = Run(tmp_path, graphopt.RMSProp(parameters(SHAPES), learning_rate=0.05, **settings))
    for _ in range(6):
        run.step()
        run.check()


@needs_training_package
@pytest.mark.parametrize("settings", [{}, {"decoupled_weight_decay": True, "momentum": 0.9}])
def test_groups(settings, tmp_path):
    """Rates, decay and centralization of their own, also where a shape begins like another."""
    shapes = [(2, 3), (2, 3, 1), (3, 2), (2,), (), (5,), (4, 3, 2, 2), (4, 3)]
    params = [
        graphopt.Parameter(f"p{i}", shape, op_type="Conv" if len(shape) == 4 else None)
        for i, shape in enumerate(shapes)
    ]
    groups = [
        {"params": params[:2], "lr": 0.01},
        {"params": params[2:5], "lr": 0.03, "weight_decay": 0.1},
        {"params": params[5:], "weight_decay": FALLING, "grad_centralization": True},
    ]
    run = Run(tmp_path, graphopt.RMSProp(groups, learning_rate=0.002, **settings))
    for _ in range(5):
        run.step()
        run.check()


@needs_training_package
def test_many_parameters_of_odd_names(tmp_path):
    """No order of names or of a hash table matters."""
    odd = ["p10", "p2", "P2", "_a", ".a", "a.b", "a_b", "ä", "é", "mean", "0", "a b", "a/b:0"]
    names = [*odd, *(f"layer{index}.weight" for index in range(107))]
    shapes = {name: (2, 3) if index % 3 else (3,) for index, name in enumerate(names)}
    run = Run(tmp_path, graphopt.RMSProp(parameters(shapes), learning_rate=0.05, momentum=0.9))
    for _ in range(3):
        run.step()
    run.check()
    loaded = Device(run.files, run.device.save(tmp_path / "saved"))
    assert worst(loaded.state, run.device.state) == 0
    run.device = loaded
    for _ in range(3):
        run.step()
    run.check()


@needs_training_package
def test_the_application_sets_the_rate(tmp_path):
    """It stands for the rate of the first group; the others keep their ratio to it."""
    shapes = {"a": (3,), "b": (2,)}
    a, b = parameters(shapes)
    opt = graphopt.RMSProp([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.3}])
    other = graphopt.RMSProp([{"params": [a], "lr": 0.02}, {"params": [b], "lr": 0.06}])
    run = Run(tmp_path, opt)
    run.device.optimizer.set_learning_rate(0.02)
    run.reference = ReferenceRMSProp(other, run.initial)
    for _ in range(3):
        run.step()
    run.check()


@needs_training_package
def test_linear_schedule_of_the_runtime(tmp_path):
    native = importlib.import_module("onnxruntime.capi._pybind_state")
    opt = graphopt.RMSProp(parameters(SHAPES), learning_rate=0.1)
    run = Run(tmp_path, opt)
    schedule = native.LinearLRScheduler(run.device.optimizer, 2, 10, 0.1)
    for _ in range(6):
        rate = run.device.optimizer.get_learning_rate()
        same = graphopt.RMSProp(parameters(SHAPES), learning_rate=rate)
        run.reference.optimizer = same
        run.step()
        schedule.scheduler_step()
    assert 0 < rate < 0.1
    run.check()


@needs_training_package
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_not_finite(value, tmp_path):
    """It stays with its elements, and what is infinite is as in a session until the next step."""
    opt = graphopt.RMSProp(parameters({"w": (4,), "v": (2,)}), learning_rate=0.1, momentum=0.9)
    run = Run(tmp_path, opt)
    session = graphopt.Session(graphopt.update_graph(opt), parameters=run.initial, kernels=False)
    for step in range(3):
        gradients = normal(run.rng, run.shapes)
        if step == 1:
            gradients["w"][1] = value
        run.device.step(given(gradients))
        session.step({f"{name}_grad": gradient for name, gradient in gradients.items()})
        found, expected = run.device.state, session.state
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, 1e-5, 1e-6, err_msg=name)


@pytest.mark.quick
def test_description():
    model = _optimizer_model.optimizer_model(graphopt.RMSProp(parameters(SHAPES), momentum=0.9))
    sequences = ["params", "gradients", "first_order_moments", "second_order_moments"]
    assert [value.name for value in model.graph.input] == ["learning_rate", "step", *sequences]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("AdamWOptimizer") == 1
    assert "SGDOptimizerV2" not in kinds
    kept = {entry.key: entry.value for entry in model.metadata_props}
    momentums = {"mean_square": "momentum1", "moment": "momentum0"}
    assert json.loads(kept["graphopt.momentums"]) == momentums
    (update,) = (f.name for f in model.functions if f.name.startswith("RMSProp"))
    assert update == "RMSPropMomentum"
    opset = helper.make_opsetid("", 17)
    assert opset in model.opset_import


W, V = parameters({"w": (3,), "v": (3,)})
MISFITS = {
    "three states": ([W], {"momentum": 0.9, "centered": True}, "keeps three states"),
    "schedule": ([W], {"learning_rate": FALLING}, "the application sets the rate"),
    "list": ([W], {"learning_rate": [0.1, 0.2]}, "the learning rate of group 0: got"),
    "schedule of a group": (
        [{"params": [W]}, {"params": [V], "lr": FALLING}],
        {},
        "the learning rate of group 1: got ExponentialDecayLR",
    ),
    "no ratio": (
        [{"params": [W], "lr": 0.0}, {"params": [V], "lr": 0.1}],
        {},
        "got 0.1, which is no multiple of 0.0",
    ),
    "two rates of one shape": (
        [{"params": [W], "lr": 0.1}, {"params": [V], "lr": 0.2}],
        {},
        r"'w' and 'v' both have the shape \[3\], but different rules \(learning_rate\)",
    ),
    "an input": (
        [W],
        {"weight_decay": schedules.FromCaller("strength")},
        "needs the input 'strength'",
    ),
}


@pytest.mark.parametrize(("params", "settings", "message"), MISFITS.values(), ids=MISFITS)
def test_misfits(params, settings, message):
    opt = graphopt.RMSProp(params, **settings)
    with pytest.raises(ValueError, match=message) as caught:
        _optimizer_model.optimizer_model(opt)
    assert "leave out optimizer_model=True: the update then is inside" in str(caught.value)


def test_the_checkpoint_has_the_rate(tmp_path):
    """ONNX Runtime forgets it; an application reads it there."""
    opt = graphopt.RMSProp(parameters(SHAPES), learning_rate=0.05)
    model = linear_in(normal(np.random.default_rng(0), SHAPES))
    files = graphopt.export_on_device(
        model, "objective", opt, tmp_path / "device", optimizer_model=True
    )
    found = checkpoint.read(files.checkpoint).optimizer.learning_rate
    assert found == pytest.approx(0.05)


X, Y = parameters({"w": (3, 4), "b": (4,)})
STRANGE = {
    "fewer parameters": [X],
    "more parameters": [X, Y, graphopt.Parameter("c", (1,))],
    "an unknown shape": [{"params": [X]}, {"params": [graphopt.Parameter("b", (5,))], "lr": 0.5}],
}


@needs_training_package
@pytest.mark.parametrize("params", STRANGE.values(), ids=STRANGE)
def test_a_step_that_fails_writes_nothing(params, tmp_path):
    """The model is for other parameters than those of the checkpoint."""
    run = Run(tmp_path, graphopt.RMSProp([X, Y], learning_rate=0.1, momentum=0.9))
    run.step()
    before = run.device.save(tmp_path / "before")
    assert worst(Device(run.files, before).state, run.device.state) == 0
    strange = graphopt.RMSProp(params, learning_rate=0.1, momentum=0.9)
    model = _optimizer_model.optimizer_model(strange)
    run.files.optimizer_model.write_bytes(model.SerializeToString())
    device = Device(run.files, before)
    with pytest.raises(Exception, match="Non-zero status code"):
        device.step(given(normal(run.rng, run.shapes)))
    assert worst(device.state, run.device.state) == 0


@needs_training_package
@pytest.mark.parametrize(
    "settings",
    [{"nesterov": True, "momentum": 0.9}, {"centered": True, "epsilon": 1e-3}, {"decay": 0.1}],
    ids=["nesterov", "centered", "short memory"],
)
def test_many_parameters_in_two_ways(settings, tmp_path, monkeypatch):
    """More tensors than are updated in one piece, each known by its shape."""
    monkeypatch.setattr(_native_update, "_MAX_TENSORS", 16)
    shapes = [(3, 2, 2, 2), (5,), (), (2, 3)]
    params = [
        graphopt.Parameter(f"p{index}", shape, op_type="Conv" if len(shape) == 4 else None)
        for index, shape in enumerate(shapes * 10)
    ]
    convolutions = {"params": params[::4], "grad_centralization": True, "weight_decay": 0.1}
    others = {"params": [p for p in params if not p.op_type], "lr": 0.03}
    opt = graphopt.RMSProp([convolutions, others], learning_rate=0.01, loss_scale=8.0, **settings)
    run = Run(tmp_path, opt)
    for _ in range(4):
        run.step()
    run.check()
