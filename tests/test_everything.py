"""A run with everything on, Dropout included, that is interrupted at any step and goes on."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import graphopt
from graphopt.cli import app
from tests.helpers.everything import feeds_of, graph_of, network

STEPS = 14


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
