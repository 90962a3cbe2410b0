"""The demo: real data, trained to the accuracy that it reports."""

import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import graphopt
from graphopt.examples import digits
from tests.helpers.folders import ROOT
from tools import demo

pytestmark = pytest.mark.any_runtime

EPOCHS = 20  # what `make demo` does


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return demo.run(folder, EPOCHS), demo.Files.under(folder)


def initializers(model):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer}


@pytest.mark.quick
def test_learns_the_digits(trained):
    history, _ = trained
    assert history.accuracies[-1] >= 0.97
    assert len(history.accuracies) == EPOCHS
    assert len(history.losses) == EPOCHS * 45  # 1437 samples in batches of 32
    assert np.all(np.isfinite(history.losses))
    assert np.mean(history.losses[-45:]) < 0.01


def test_exported_model_has_the_reported_accuracy(trained):
    history, files = trained
    test = digits.load().test
    session = onnxruntime.InferenceSession(files.model, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["x"]
    assert [value.name for value in session.get_outputs()] == ["logits"]
    predicted = session.run(None, {"x": test.x})[0].argmax(axis=1)
    assert np.mean(predicted == test.labels) == history.accuracies[-1]


def test_checkpoint_continues_the_saved_graph(trained, tmp_path):
    history, files = trained
    session = graphopt.Session(files.graph)
    session.load_checkpoint(files.checkpoint)
    assert session.state["global_step"] == len(history.losses)
    session.export(tmp_path / "model.onnx")
    exported, expected = initializers(tmp_path / "model.onnx"), initializers(files.model)
    assert exported.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)


def test_saved_graph_starts_from_the_initial_parameters(trained):
    _, files = trained
    state = graphopt.Session(files.graph).state
    assert state["global_step"] == 0
    for name, value in initializers(files.model).items():
        assert not np.array_equal(state[name], value), name
        np.testing.assert_array_equal(state[f"mean_square.{name}"], 1, err_msg=name)


def test_picture(trained):
    _, files = trained
    picture = files.picture.read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1200, 900)


@pytest.mark.exhaustive
def test_program_ends_with_the_accuracy_and_says_where_the_files_are(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "tools.demo", "--epochs", "2", "--output", tmp_path / "new"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stdout.splitlines()
    assert re.fullmatch(r"test accuracy +\d+\.\d\d%", lines[-1])
    for file in demo.Files.under(tmp_path / "new"):
        assert file.is_file()
        assert any(line.endswith(f" {file}") for line in lines)
