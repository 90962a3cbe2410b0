"""Loss scales, skipped steps, clipping, sums, averages and random numbers in files for devices."""

import numpy as np
import pytest

import graphopt
from graphopt import Accumulation, DynamicLossScale, ParameterAverage, schedules
from tests.helpers.environments import HAS_TRAINING_PACKAGE, needs_training_package
from tests.helpers.everything import network

if HAS_TRAINING_PACKAGE:
    from tests.helpers.device import Device

GROWING = DynamicLossScale(initial=8.0, growth_interval=2)
FED = schedules.FromCaller("fed_scale")


CASES = {
    "dropout": ({}, {}),
    "another seed": ({}, {"seed": 5}),
    "skip": ({"skip_on_overflow": True}, {}),
    "dynamic": ({"loss_scale": GROWING}, {}),
    "fed": ({"loss_scale": FED, "skip_on_overflow": True}, {}),
    "norm": ({"clip_norm": 0.5, "skip_on_overflow": True}, {}),
    "norm of each": ({"clip_norm": 0.5, "clip_norm_per": "parameter"}, {}),
    "value": ({"clip_value": 0.01, "loss_scale": 4.0}, {}),
    "average": ({"average": ParameterAverage(0.9, statistics=True, warm_up=True)}, {}),
    "mean of two": ({}, {"accumulation": 2}),
    "sum as asked for": ({"skip_on_overflow": True}, {"accumulation": Accumulation(None, "sum")}),
    "masked": ({"average": 0.9, "clip_norm": 0.5, "clip_norm_per": "group"}, {"group_mask": True}),
    "all": (
        {
            "loss_scale": GROWING,
            "clip_norm": 0.5,
            "average": ParameterAverage(0.9, statistics=True),
            "momentum": 0.9,
            "centered": True,
            "weight_decay": 1e-3,
        },
        {"accumulation": 2, "group_mask": True},
    ),
}


def optimizer(model, **settings):
    names = [["w", "scale", "bias"], ["v"]]
    params = {p.name: p for p in graphopt.parameters(model)}
    groups = [{"params": [params[name] for name in group]} for group in names]
    return graphopt.RMSProp(groups, learning_rate=1e-2, epsilon=1e-3, **settings)


def feeds_of(step, device):
    """Those of a step, some of which overflow; a device is fed all that the graph may ask for."""
    rng = np.random.default_rng(step)
    x = rng.standard_normal((5, 6)).astype(np.float32)
    if step % 5 == 3:
        x[0, 0] = np.nan if step % 2 else np.inf
    fed = {"x": x, "labels": rng.standard_normal((5, 2)).astype(np.float32)}
    fed |= {"fed_scale": np.array(2.0 ** (step % 4), np.float32), "update": np.array(step % 3 == 2)}
    fed |= {"group_mask": np.array([step % 4 != 1, step % 7 != 2])}
    names = device.module.input_names(True)
    return {name: value for name, value in fed.items() if name in names}


@needs_training_package
@pytest.mark.parametrize("case", CASES)
def test_a_device_trains_as_a_session(case, tmp_path):
    """Also from one checkpoint to another application, in both directions."""
    settings, options = CASES[case]
    model = network(noise=False)
    opt = optimizer(model, **settings)
    graph = graphopt.training_graph(model, "mse", opt, layout="separate", **options)
    session = graphopt.Session(graph, kernels=False)
    files = graphopt.export_on_device(model, "mse", opt, tmp_path / "device", **options)
    device = Device(files)
    skips = opt.skip_on_overflow
    for step in range(12):
        feeds = feeds_of(step, device)
        if not skips and not np.isfinite(feeds["x"]).all():
            continue
        expected, found = session.step(feeds), device.step(feeds)
        assert found.keys() <= expected.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)
        if step == 6:
            session.save_checkpoint(tmp_path / "session")
            device.save(tmp_path / "saved")
            session = graphopt.Session(graph, kernels=False)
            session.load_checkpoint(tmp_path / "saved")
            again = graphopt.export_on_device(
                model, "mse", opt, tmp_path / "again", state=tmp_path / "session", **options
            )
            device = Device(again)
    assert device.state.keys() == session.state.keys()
    for name, value in device.state.items():
        np.testing.assert_allclose(value, session.state[name], rtol=1e-5, atol=1e-7, err_msg=name)
    if opt.accumulation is None and "accumulation" not in options:
        assert graphopt.verify(files.training_model, steps=2).verified


@needs_training_package
def test_random_numbers_go_on_where_onnx_runtime_updates(tmp_path):
    model = network(noise=False)
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=1e-2)
    graph = graphopt.training_graph(model, "mse", opt)
    session = graphopt.Session(graph, kernels=False)
    files = graphopt.export_on_device(
        model, "mse", opt, tmp_path / "device", optimizer_model=True, seed=0
    )
    device = Device(files)
    for step in range(4):
        feeds = feeds_of(step, device)
        if step != 3:
            expected, found = session.step(feeds)["loss"], device.step(feeds)["loss"]
            np.testing.assert_allclose(found, expected, rtol=1e-5)
    device = Device(files, device.save(tmp_path / "saved"))
    feeds = feeds_of(7, device)
    np.testing.assert_allclose(device.step(feeds)["loss"], session.step(feeds)["loss"], rtol=1e-5)
    assert device.state["random_step"] == 4


@pytest.mark.any_runtime
@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"loss_scale": GROWING}, "loss_scale"),
        ({"loss_scale": FED}, "loss_scale"),
        ({"skip_on_overflow": True}, "skip_on_overflow"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"clip_value": 1.0}, "clip_value"),
        ({"average": 0.9}, "average"),
        ({"accumulation": 2}, "accumulation"),
    ],
)
@pytest.mark.parametrize("way", ["optimizer_model", "gradient_accumulation"])
def test_gradients_in_buffers_of_the_runtime_have_none_of_it(settings, name, way, tmp_path):
    model = network(noise=False)
    options = {"accumulation": settings["accumulation"]} if name == "accumulation" else {}
    opt = optimizer(model, **({} if options else settings))
    with pytest.raises(ValueError, match=rf"^{name}: got .* with {way}=True"):
        graphopt.export_on_device(model, "mse", opt, tmp_path / "d", **{way: True}, **options)
    assert not (tmp_path / "d").exists()
