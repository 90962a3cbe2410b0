"""A run with everything on, Dropout included, that is interrupted at any step and goes on."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

import graphopt
from graphopt import DynamicLossScale, ParameterAverage, schedules
from graphopt.cli import app

STEPS = 14


def network():
    """Batch normalization and Dropout between two products."""
    made = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 6] x) => (float[N, 2] y) {
        on = Constant <value = bool {1}> () r = Constant <value = float {0.3}> ()
        h = MatMul (x, w) n = BatchNormalization (h, scale, bias, mean, var)
        noise = RandomNormalLike <scale = 0.1> (n) m = Add (n, noise)
        d = Dropout (m, r, on) y = MatMul (d, v) }""")
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((6, 8)), "v": rng.standard_normal((8, 2))}
    arrays |= {"scale": np.ones(8), "bias": np.zeros(8), "mean": np.zeros(8), "var": np.ones(8)}
    for name, array in arrays.items():
        made.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return made


def graph_of(model, **options):
    """Everything: a falling rate, a dynamic scale, clipping, averages, sums of three steps."""
    params = {p.name: p for p in graphopt.parameters(model)}
    rate = schedules.ExponentialDecayLR(1e-2, 0.9, 1)
    groups = [
        {"params": [params[n] for n in ("w", "scale", "bias")], "weight_decay": 1e-3},
        {"params": [params["v"]], "weight_decay": 0.0},
    ]
    optimizer = graphopt.RMSProp(
        groups,
        rate,
        momentum=0.9,
        centered=True,
        epsilon=1e-3,
        loss_scale=DynamicLossScale(initial=8.0, growth_interval=2),
        clip_norm=0.5,
        clip_norm_per="group",
        average=ParameterAverage(0.9, warm_up=True, statistics=True),
    )
    return graphopt.training_graph(model, "mse", optimizer, accumulation=3, **options)


def feeds_of(step, **more):
    """Those of a step, one of five with a number that is none."""
    rng = np.random.default_rng(step)
    x = rng.standard_normal((5, 6)).astype(np.float32)
    if step % 5 == 3:
        x[0, 0] = np.nan
    return {"x": x, "labels": rng.standard_normal((5, 2)).astype(np.float32), **more}


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("layout", "memory", "kernels"),
    [("chunks", "fast", True), ("foreach", "low", False), ("separate", "balanced", True)],
)
def test_it_goes_on_from_any_step_bit_for_bit(layout, memory, kernels, tmp_path):
    graph = graph_of(network(), layout=layout, memory=memory, group_mask=True)
    feeds = [feeds_of(s, group_mask=np.array([s % 4 != 1, s % 7 != 2])) for s in range(STEPS)]
    whole = graphopt.Session(graph, kernels=kernels)
    outputs = []
    for step in range(STEPS):
        whole.save_checkpoint(tmp_path / f"{step}.safetensors")
        outputs.append(whole.step(feeds[step]))
    counted = whole.state
    assert (counted["skipped_steps"], counted["random_step"]) == (3, STEPS)
    assert counted["global_step"] == 3
    resumed = graphopt.Session(graph, kernels=kernels)
    for begin in range(STEPS):
        resumed.load_checkpoint(tmp_path / f"{begin}.safetensors")
        for step in range(begin, STEPS):
            same(outputs[step], resumed.step(feeds[step]))
        same(counted, resumed.state)


def test_the_command_goes_on_from_any_step_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graph_of(network()).save("train.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 6)).astype(np.float32)
    x[7, 3] = np.nan
    np.savez("data.npz", x=x, labels=rng.standard_normal((40, 2)).astype(np.float32))
    train = ["train", "train.onnx", "--data", "data.npz", "--batch-size", "5"]

    def run(*arguments):
        result = CliRunner().invoke(app, [*train, "--epochs", "2", *arguments])
        assert result.exit_code == 0, result.output
        assert "skipped steps: 2" in result.output
        assert "nan" not in result.output.splitlines()[-2]

    def state(path):
        session = graphopt.Session("train.onnx")
        session.load_checkpoint(path)
        return session.state

    run("--checkpoint", "whole", "--save-every", "1", "--keep", "99")
    whole = state("whole")
    assert (whole["random_step"], whole["skipped_steps"]) == (16, 2)
    middles = sorted(Path("whole").iterdir())[:-1]
    assert len(middles) > 3
    for middle in middles[::2]:
        run("--checkpoint", f"{middle.stem}.other.safetensors", "--resume", str(middle))
        same(whole, state(f"{middle.stem}.other.safetensors"))


def test_an_epoch_whose_steps_are_all_skipped_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graph_of(network()).save("train.onnx")
    np.savez("data.npz", x=np.full((9, 6), np.nan, np.float32), labels=np.ones((9, 2), np.float32))
    train = ["train", "train.onnx", "--data", "data.npz", "--batch-size", "3", "--epochs", "2"]
    result = CliRunner().invoke(app, train)
    assert result.exit_code == 1
    assert "all steps of an epoch overflowed and were skipped" in result.output
