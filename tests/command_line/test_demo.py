"""The first minute: what ``graphopt demo`` writes, runs and says."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt.command_line.demo import COMMANDS
from graphopt.examples import digits
from tests.helpers.command_line import run, succeed
from tests.helpers.folders import JAVASCRIPT

pytestmark = pytest.mark.any_runtime


def test_trains_and_says_how(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = succeed("demo", "new/folder").output
    folder = tmp_path / "new" / "folder"
    for command in COMMANDS:
        assert f"$ graphopt {command}\n" in said
    session = onnxruntime.InferenceSession(folder / "trained.onnx")
    test = digits.load().test
    (logits,) = session.run(None, {"x": test.x})
    accuracy = np.mean(logits.argmax(axis=1) == test.labels)
    assert accuracy > 0.96
    assert "samples: 360\n" in said
    assert f"accuracy: {accuracy:.6f}\n" in said
    with np.load(folder / "test.npz") as archive:
        assert np.array_equal(archive["labels"], test.labels)


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("text", encoding="utf-8")
    result = run("demo", tmp_path)
    assert result.exit_code == 1
    assert "give a new folder" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_programs_in_javascript_come_with_what_they_train(tmp_path):
    succeed("demo", tmp_path / "js", "--javascript")
    for program in JAVASCRIPT.glob("*.*js*"):
        assert (tmp_path / "js" / program.name).read_bytes() == program.read_bytes()
    build = tmp_path / "js" / "build"
    written = json.loads((build / "digits.json").read_text(encoding="utf-8"))
    assert len(written["train"]["labels"]) == 1437
    assert "loss" in [value.name for value in onnx.load(build / "train.onnx").graph.output]
