"""Training with ONNX Runtime's on-device API, from the files of `graphopt.export_on_device`."""

import dataclasses
import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.on_device import checkpoint, read_state
from models.zoo import ZOO
from tests.helpers.deep import normalized
from tests.helpers.environments import HAS_TRAINING_PACKAGE, needs_training_package
from tests.helpers.on_device import given, linear_in, worst
from tests.helpers.trajectories import CASES, Trajectory

if HAS_TRAINING_PACKAGE:
    from tests.helpers.device import Device

WAYS = pytest.mark.parametrize("optimizer_model", [False, True], ids=["update inside", "native"])


# The update.


@needs_training_package
@WAYS
@pytest.mark.parametrize("case", CASES)
def test_trajectories(case, optimizer_model, tmp_path):
    trajectory = Trajectory(case)
    opt = trajectory.optimizer
    model = linear_in(trajectory.initial)
    export = {"optimizer_model": optimizer_model}
    reason = unfit(opt, optimizer_model)
    if reason:
        with pytest.raises(ValueError, match=reason):
            graphopt.export_on_device(model, "objective", opt, tmp_path / "device", **export)
        return
    files = graphopt.export_on_device(model, "objective", opt, tmp_path / "device", **export)
    device = Device(files)
    stored = device.state.keys() - {"global_step"}
    for step in range(trajectory.steps):
        device.step(given(trajectory.gradients(step), opt.loss_scale))
        state = device.state
        assert state["global_step"] == step + 1
        trajectory.check(state, step, stored)


def unfit(opt, optimizer_model):
    """Why an optimizer cannot be exported; empty if it can."""
    if any(parameter.dtype != "float32" for parameter in opt.params):
        return "is float16, and ONNX Runtime's on-device training writes float32 only"
    if optimizer_model and opt.centered and opt.momentum:
        return "three states"
    if not optimizer_model:
        return ""
    rules = {(parameter.shape, rule) for parameter, rule in zip(opt.params, opt.rules, strict=True)}
    rates = [rule.learning_rate for rule in opt.rules]
    if not all(isinstance(rate, graphopt.schedules.base.Fixed) for rate in rates):
        return "the application sets the rate in each step"
    alike = {(shape, dataclasses.replace(rule, group=0)) for shape, rule in rules}
    if len(alike) > len({shape for shape, _ in alike}):
        return "tells parameters apart by their shapes alone"
    return ""


# Networks.


DIGITS = ZOO["digits_cnn"]


def digits(**settings):
    model = DIGITS.build(batch=8)
    return model, graphopt.RMSProp(graphopt.parameters(model), **settings)


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    return [DIGITS.feeds(rng, 8) for _ in range(count)]


@needs_training_package
@WAYS
def test_digits(optimizer_model, tmp_path):
    """50 steps, save, load in a new application, and 50 more: as a session."""
    model, opt = digits(learning_rate=1e-3, momentum=0.9, weight_decay=1e-4)
    files = graphopt.export_on_device(
        model, DIGITS.loss, opt, tmp_path / "device", optimizer_model=optimizer_model
    )
    device, session = (
        Device(files),
        graphopt.Session(graphopt.training_graph(model, DIGITS.loss, opt), kernels=False),
    )
    for feeds in batches(50):
        loss, expected = device.step(feeds)["loss"], session.step(feeds)["loss"]
        assert loss == pytest.approx(expected, rel=1e-5)
    assert worst(device.state, session.state) < 1e-6
    device = Device(files, device.save(tmp_path / "saved"))
    for feeds in batches(50, seed=1):
        device.step(feeds)
        session.step(feeds)
    assert worst(device.state, session.state) < 1e-6


@needs_training_package
@pytest.mark.parametrize("memory", ["balanced", "low"])
@WAYS
def test_what_is_computed_again_does_not_show(optimizer_model, memory, tmp_path):
    model = normalized(4)
    opt = graphopt.RMSProp(graphopt.parameters(model), 1e-3, momentum=0.9)
    settings = {"optimizer_model": optimizer_model}
    plain = graphopt.export_on_device(model, "mse", opt, tmp_path / "plain", **settings)
    small = graphopt.export_on_device(
        model, "mse", opt, tmp_path / "small", memory=memory, **settings
    )
    nodes = onnx.load(small.training_model).graph.node
    assert any("/again" in node.name for node in nodes)
    device, expected = Device(small), Device(plain)
    rng = np.random.default_rng(0)
    for _ in range(5):
        feeds = {name: rng.normal(size=(8, 4, 16, 16)).astype("f") for name in ("x", "labels")}
        assert device.step(feeds)["loss"] == pytest.approx(expected.step(feeds)["loss"], rel=1e-5)
    assert worst(device.state, expected.state) < 1e-6


@needs_training_package
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@WAYS
def test_half_precision(optimizer_model, precision, tmp_path):
    """As a session of the same precision; what is carried is float32."""
    model, opt = digits(learning_rate=1e-3, momentum=0.9, loss_scale=256.0)
    files = graphopt.export_on_device(
        model,
        DIGITS.loss,
        opt,
        tmp_path / "device",
        optimizer_model=optimizer_model,
        precision=precision,
    )
    device = Device(files)
    graph = graphopt.training_graph(model, DIGITS.loss, opt, precision=precision)
    session = graphopt.Session(graph, kernels=False)
    for feeds in batches(10):
        loss, expected = device.step(feeds)["loss"], session.step(feeds)["loss"]
        assert loss == pytest.approx(expected, rel=1e-3)
    assert worst(device.state, session.state) < 1e-3


def test_memory_is_one_of_three(tmp_path):
    model, opt = digits()
    with pytest.raises(ValueError, match=r"memory: got 'small' \(str\), expected 'fast' or"):
        graphopt.export_on_device(model, DIGITS.loss, opt, tmp_path / "device", memory="small")
    assert not (tmp_path / "device").exists()


@needs_training_package
def test_everything_at_once(tmp_path):
    """Centered with momentum, two rates of which one falls, centralized, a mask that changes."""
    model = DIGITS.build(batch=8)
    params = graphopt.parameters(model)
    cosine = graphopt.schedules.CosineDecayLR(1e-4, 1e-2, 20)
    groups = [
        {"params": params[:3], "lr": cosine, "weight_decay": 1e-3, "grad_centralization": True},
        {"params": params[3:], "lr": 2e-3},
    ]
    opt = graphopt.RMSProp(groups, momentum=0.9, centered=True, epsilon=1e-3, loss_scale=64.0)
    files = graphopt.export_on_device(
        model, DIGITS.loss, opt, tmp_path / "device", group_mask=True, outputs=["logits"]
    )
    device = Device(files)
    graph = graphopt.training_graph(model, DIGITS.loss, opt, group_mask=True)
    session = graphopt.Session(graph, kernels=False)
    for step, feeds in enumerate(batches(20)):
        feeds["group_mask"] = np.array([step % 3 != 0, step % 4 != 1])
        found, expected = device.step(feeds), session.step(feeds)
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
    assert worst(device.state, session.state) < 1e-6


NETWORKS = ["mlp_mse", "mlp_l1", "mlp_bce", "resnet", "mobilenet_v3", "transformer", "lstm"]


@pytest.mark.quick
@needs_training_package
@pytest.mark.parametrize("network", NETWORKS)
def test_networks(network, tmp_path):
    """Whatever a session trains: batch normalization, attention, recurrent networks."""
    entry = ZOO[network]
    model = entry.build(batch=2)
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=1e-3)
    devices = {}
    for way, native in (("inside", False), ("native", True)):
        folder = tmp_path / way
        files = graphopt.export_on_device(model, entry.loss, opt, folder, optimizer_model=native)
        devices[way] = Device(files)
    session = graphopt.Session(graphopt.training_graph(model, entry.loss, opt), kernels=False)
    rng = np.random.default_rng(5)
    for _ in range(3):
        feeds = entry.feeds(rng, 2)
        loss = session.step(feeds)["loss"]
        for way, device in devices.items():
            assert device.step(feeds)["loss"] == pytest.approx(loss, rel=1e-4), way
    expected = session.state
    for way, device in devices.items():
        found = device.state
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            message = f"{name}, {way}"
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=2e-5, err_msg=message)


@needs_training_package
@WAYS
def test_evaluation_and_export(optimizer_model, tmp_path):
    """ONNX Runtime's own EvalStep, and the model that it exports: as the session's."""
    entry = ZOO["resnet"]
    model = entry.build(batch=4)
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=1e-3)
    (logits,) = [value.name for value in model.graph.output]
    files = graphopt.export_on_device(
        model,
        entry.loss,
        opt,
        tmp_path / "device",
        optimizer_model=optimizer_model,
        outputs=[logits],
    )
    device = Device(files)
    feeds = entry.feeds(np.random.default_rng(0), 4)
    device.step(feeds)
    evaluated = device.evaluate(feeds)
    assert list(evaluated) == ["loss", logits]
    device.module.export_model_for_inferencing(str(tmp_path / "exported.onnx"), [logits])
    session = graphopt.Session(graphopt.training_graph(model, entry.loss, opt))
    session.load_checkpoint(device.save(tmp_path / "saved"))
    session.export(tmp_path / "trained.onnx")
    for name in ("exported.onnx", "trained.onnx"):
        run = onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        (found,) = run.run([logits], {"x": feeds["x"]})
        np.testing.assert_allclose(found, evaluated[logits], rtol=1e-4, atol=1e-5)
    exported = onnx.load(tmp_path / "exported.onnx")
    assert [value.name for value in exported.graph.input] == ["x"]
    assert not any("mean_square" in tensor.name for tensor in exported.graph.initializer)


# Adding gradients up.


@needs_training_package
@pytest.mark.parametrize("centered", [False, True])
def test_accumulation(centered, tmp_path):
    """Steps that do not update change nothing but the sum, with which the next one updates."""
    weights = {"a": np.ones((2, 3), np.float32), "b": np.float32([1, -2])}
    params = [graphopt.Parameter(name, value.shape) for name, value in weights.items()]
    opt = graphopt.RMSProp(params, learning_rate=0.1, momentum=0.5, centered=centered)
    model = linear_in(weights)
    files = graphopt.export_on_device(
        model, "objective", opt, tmp_path / "device", gradient_accumulation=True
    )
    device = Device(files)
    session = graphopt.Session(graphopt.update_graph(opt), parameters=weights)
    rng = np.random.default_rng(0)
    sums = {name: np.zeros_like(value) for name, value in weights.items()}
    for update in (False, False, True, True, False, True):
        gradients = {
            name: rng.normal(size=value.shape).astype(np.float32) for name, value in weights.items()
        }
        sums = {name: sums[name] + gradients[name] for name in sums}
        before = device.state
        device.train(given(gradients) | {"update": np.array([update])})
        if update:
            session.step({f"{name}_grad": value for name, value in sums.items()})
            sums = {name: np.zeros_like(value) for name, value in weights.items()}
            assert worst(device.state, session.state) < 1e-6
        else:
            assert worst(device.state, before) == 0


@needs_training_package
def test_accumulation_forgets(tmp_path):
    """LazyResetGrad drops what has been added, even if it is NaN, and so does a new start."""
    weights = {"w": np.ones(3, np.float32)}
    opt = graphopt.RMSProp([graphopt.Parameter("w", (3,))], learning_rate=0.1)
    files = graphopt.export_on_device(
        linear_in(weights), "objective", opt, tmp_path / "device", gradient_accumulation=True
    )
    no, yes = {"update": np.array([False])}, {"update": np.array([True])}
    nan, one = given({"w": np.full(3, np.nan)}), given({"w": np.ones(3)})
    device = Device(files)
    device.train(nan | no)
    device.module.lazy_reset_grad()
    device.train(one | yes)
    fresh = Device(files)
    fresh.train(one | yes)
    assert worst(device.state, fresh.state) == 0
    device.train(nan | no)
    again = Device(files, device.save(tmp_path / "saved"))
    again.train(one | yes)
    fresh.train(one | yes)
    assert worst(again.state, fresh.state) == 0


@needs_training_package
def test_statistics_move_with_every_step(tmp_path):
    """Running statistics of batch normalization do, also in steps that only add gradients."""
    entry = ZOO["resnet"]
    model = entry.build(batch=2)
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=1e-3)
    files = graphopt.export_on_device(
        model, entry.loss, opt, tmp_path / "device", gradient_accumulation=True
    )
    device = Device(files)
    before = device.state
    device.train(entry.feeds(np.random.default_rng(0), 2) | {"update": np.array([False])})
    after = device.state
    moved = {name for name in before if (before[name] != after[name]).any()}
    assert moved == {name for name in before if "running_" in name}


# The state.


@pytest.mark.any_runtime
@pytest.mark.parametrize("centered", [False, True])
def test_from_a_session_and_back(centered, tmp_path):
    """`Session.state`, or its checkpoint, goes into the files, and theirs into a session."""
    model, opt = digits(learning_rate=1e-3, momentum=0.0 if centered else 0.9, centered=centered)
    graph = graphopt.training_graph(model, DIGITS.loss, opt)
    session, other = graphopt.Session(graph), graphopt.Session(graph)
    path = tmp_path / "state.safetensors"
    for steps in (0, 3):
        for feeds in batches(steps):
            session.step(feeds)
        session.save_checkpoint(path)
        for state, native, accumulate in (
            (session.state, False, False),
            (path, False, False),
            (path, False, True),
            (session.state, True, False),
        ):
            files = graphopt.export_on_device(
                model,
                DIGITS.loss,
                opt,
                tmp_path / "device",
                optimizer_model=native,
                gradient_accumulation=accumulate,
                state=state,
            )
            assert worst(read_state(files.checkpoint), session.state) == 0
            other.load_checkpoint(files.checkpoint)
            assert worst(other.state, session.state) == 0


@pytest.mark.parametrize("step", [0, 1, 2**24 - 1, 2**24, 2**24 + 1, 2**40 + 3])
def test_steps_are_exact(step, tmp_path):
    """However many: float32 alone would stop counting at 2**24."""
    weights = {"w": np.ones(3, np.float32)}
    opt = graphopt.RMSProp([graphopt.Parameter("w", (3,))])
    state = {
        "w": weights["w"],
        "mean_square.w": np.ones(3, np.float32),
        "global_step": np.array(step, np.int64),
    }
    files = graphopt.export_on_device(
        linear_in(weights), "objective", opt, tmp_path / "device", state=state
    )
    assert read_state(files.checkpoint)["global_step"] == step
    if HAS_TRAINING_PACKAGE:
        device = Device(files)
        device.step(given(weights))
        assert device.state["global_step"] == step + 1


# Files.


@pytest.mark.any_runtime
@pytest.mark.quick
def test_description(tmp_path):
    model, opt = digits(learning_rate=1e-3)
    files = graphopt.export_on_device(
        model, DIGITS.loss, opt, tmp_path / "device", group_mask=True, gradient_accumulation=True
    )
    described = json.loads(files.description.read_text())
    training = described["models"]["training_model.onnx"]
    assert [(v["name"], v["dtype"]) for v in training["inputs"]] == [
        ("x", "float32"),
        ("labels", "int64"),
        ("update", "bool"),
        ("group_mask", "bool"),
    ]
    assert [v["name"] for v in training["outputs"]] == ["loss"]
    assert training["requirements"]["operators"]["com.microsoft"] == ["InPlaceAccumulatorV2"]
    assert described["models"]["eval_model.onnx"]["requirements"]["operators"].keys() == {""}
    assert described["parameters"] == {p.name: list(p.shape) for p in opt.params}
    assert described["update"] == "training_model.onnx"
    sizes = {path.name: path.stat().st_size for path in files.checkpoint.parent.iterdir()}
    del sizes["graphopt.json"]
    assert described["bytes"] == sizes


@pytest.mark.any_runtime
def test_values_are_stored_once(tmp_path):
    """The models have no value of a parameter or state; the checkpoint has each once."""
    model, opt = digits(learning_rate=1e-3, momentum=0.9)
    files = graphopt.export_on_device(model, DIGITS.loss, opt, tmp_path / "device")
    held = 4 * 3 * sum(parameter.size for parameter in opt.params)
    assert held < files.checkpoint.stat().st_size < held + 5000
    for path in (files.training_model, files.eval_model):
        stored = onnx.load(path).graph.initializer
        assert sum(numpy_helper.to_array(tensor).nbytes for tensor in stored) < 1000
        assert not onnx.load(path).training_info


@pytest.mark.any_runtime
def test_old_files_do_not_stay(tmp_path):
    model, opt = digits(learning_rate=1e-3)
    device = tmp_path / "device"
    first = graphopt.export_on_device(
        model, DIGITS.loss, opt, device, optimizer_model=True, nominal_checkpoint=True
    )
    assert first.optimizer_model.exists()
    assert first.nominal_checkpoint.stat().st_size < 2000
    (device / "mine.txt").write_text("kept")
    second = graphopt.export_on_device(model, DIGITS.loss, opt, device)
    assert second.optimizer_model is None
    assert second.nominal_checkpoint is None
    assert sorted(path.name for path in device.iterdir()) == [
        "checkpoint",
        "eval_model.onnx",
        "graphopt.json",
        "mine.txt",
        "training_model.onnx",
    ]


# Wrong input.


WRONG = {
    "optimizer": ({"optimizer": 1}, TypeError, "optimizer: got int"),
    "flag": ({"optimizer_model": 1}, TypeError, "optimizer_model"),
    "accumulate natively": (
        {"optimizer_model": True, "gradient_accumulation": True},
        ValueError,
        "gradient_accumulation: got True with optimizer_model=True",
    ),
    "mask natively": (
        {"optimizer_model": True, "group_mask": True},
        ValueError,
        "group_mask: got True with optimizer_model=True",
    ),
    "unknown output": (
        {"outputs": ["logit"]},
        ValueError,
        re.escape("outputs: got 'logit', expected outputs of the model ('logits')"),
    ),
    "output twice": ({"outputs": ["logits"] * 2}, ValueError, "each name once"),
    "outputs": ({"outputs": "logits"}, TypeError, "outputs: got 'logits', expected a list"),
    "loss": ({"loss": "crossentropy"}, ValueError, "loss: got 'crossentropy'"),
    "state": ({"state": {}}, ValueError, "does not belong to these files: it lacks 'conv1.weight'"),
    "state file": ({"state": "nothing"}, FileNotFoundError, "there is no file 'nothing'"),
    "folder": ({"directory": "no/such/device"}, FileNotFoundError, "'no/such' does not exist"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("change", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input(change, error, message, tmp_path, monkeypatch):
    """It is named, and what was there stays."""
    monkeypatch.chdir(tmp_path)
    model, opt = digits(learning_rate=1e-3)
    files = graphopt.export_on_device(model, DIGITS.loss, opt, "device")
    before = {path: path.read_bytes() for path in files.checkpoint.parent.iterdir()}
    arguments = {"loss": DIGITS.loss, "optimizer": opt, "directory": "device"} | change
    with pytest.raises(error, match=message):
        graphopt.export_on_device(model, **arguments)
    assert {path: path.read_bytes() for path in files.checkpoint.parent.iterdir()} == before


UNFIT = {
    "three states": ({"centered": True, "momentum": 0.9}, "three"),
    "schedule": (
        {"learning_rate": graphopt.schedules.CosineDecayLR(0.0, 0.1, 10)},
        "leave out optimizer_model=True",
    ),
    "list": ({"learning_rate": [0.1, 0.2]}, "leave out optimizer_model=True"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("settings", "message"), UNFIT.values(), ids=UNFIT)
def test_what_does_not_fit_the_native_optimizer(settings, message, tmp_path):
    model, opt = digits(**settings)
    with pytest.raises(ValueError, match=message):
        graphopt.export_on_device(
            model, DIGITS.loss, opt, tmp_path / "device", optimizer_model=True
        )
    assert not (tmp_path / "device").exists()
    graphopt.export_on_device(model, DIGITS.loss, opt, tmp_path / "device")


@pytest.mark.any_runtime
def test_other_checkpoints_are_refused(tmp_path):
    """One of another network, and one that graphopt did not write."""
    model, opt = digits(learning_rate=1e-3)
    session = graphopt.Session(graphopt.training_graph(model, DIGITS.loss, opt))
    before = session.state
    weights = {"w": np.ones(3, np.float32)}
    other = graphopt.export_on_device(
        linear_in(weights),
        "objective",
        graphopt.RMSProp([graphopt.Parameter("w", (3,))]),
        tmp_path / "device",
        nominal_checkpoint=True,
    )
    foreign = tmp_path / "foreign"
    checkpoint.write(foreign, checkpoint.OnDeviceCheckpoint(trainable=weights))
    for path, message in (
        (other.checkpoint, "does not belong to this graph: its model is another one"),
        (other.nominal_checkpoint, "nominal"),
        (foreign, "it has no property 'graphopt'"),
    ):
        with pytest.raises(ValueError, match=message):
            session.load_checkpoint(path)
    assert worst(session.state, before) == 0


@needs_training_package
@WAYS
def test_ort_format(optimizer_model, tmp_path):
    """The models in ONNX Runtime's own format train alike.

    To the bit if the update is inside; the order of parameters in ONNX Runtime's sequences varies
    from one application to the next.
    """
    model, opt = digits(learning_rate=1e-3, momentum=0.9)
    files = graphopt.export_on_device(
        model,
        DIGITS.loss,
        opt,
        tmp_path / "device",
        optimizer_model=optimizer_model,
        ort_format=True,
    )
    kinds = ("training_model", "eval_model", *(["optimizer_model"] if optimizer_model else []))
    converted = {kind: getattr(files, kind).with_suffix(".ort") for kind in kinds}
    devices = [Device(files), Device(dataclasses.replace(files, **converted))]
    for feeds in batches(5):
        losses = [device.step(feeds)["loss"] for device in devices]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert worst(devices[0].state, devices[1].state) <= (1e-6 if optimizer_model else 0)


@pytest.mark.skipif(HAS_TRAINING_PACKAGE, reason="NOT RUN: onnxruntime-training is installed")
def test_ort_format_needs_the_training_package(tmp_path):
    model, opt = digits(learning_rate=1e-3)
    with pytest.raises(ImportError, match="ort_format=True needs onnxruntime-training"):
        graphopt.export_on_device(model, DIGITS.loss, opt, tmp_path / "device", ort_format=True)
    assert not (tmp_path / "device").exists()


@needs_training_package
@WAYS
def test_a_step_that_fails_changes_nothing(optimizer_model, tmp_path):
    """Here on a label that is no class."""
    model, opt = digits(learning_rate=1e-3, momentum=0.9)
    files = graphopt.export_on_device(
        model, DIGITS.loss, opt, tmp_path / "device", optimizer_model=optimizer_model
    )
    device, other = Device(files), Device(files)
    (feeds, more) = batches(2)
    device.step(feeds)
    other.step(feeds)
    before = device.state
    for label in (-1, 10):
        wrong = feeds | {"labels": np.full_like(feeds["labels"], label)}
        with pytest.raises(RuntimeError, match="indices element out of data bounds"):
            device.step(wrong)
    assert worst(device.state, before) == 0
    device.step(more)
    other.step(more)
    assert worst(device.state, other.state) < 1e-7
