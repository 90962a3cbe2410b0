"""Building on the command line: from a file, from options, for devices."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import graphopt
from graphopt.examples import digits_cnn
from tests.helpers.command_line import run, succeed

pytestmark = pytest.mark.any_runtime

FILE = """
[graph]
loss = "cross_entropy"
layout = "auto"

[optimizer]
semantics = "torch"
learning_rate = 0.25
momentum = 0.5

[[groups]]
types = ["Conv"]
weight_decay = 0.1

[[groups]]
rest = true

[on_device]
outputs = ["logits"]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a forward model and a configuration; the current one."""
    monkeypatch.chdir(tmp_path)
    onnx.save(digits_cnn.build(), "model.onnx")
    Path("train.toml").write_text(FILE, encoding="utf-8")
    return tmp_path


def optimizer(learning_rate):
    parameters = graphopt.parameters("model.onnx")
    convolutions = parameters.of_type("Conv")
    return graphopt.RMSProp(
        [
            {"params": convolutions, "weight_decay": 0.1},
            {"params": parameters.without(convolutions)},
        ],
        learning_rate=learning_rate,
        decay=0.99,
        epsilon=1e-8,
        momentum=0.5,
        epsilon_inside_root=False,
        initial_mean_square=0.0,
        learning_rate_inside_moment=False,
    )


@pytest.mark.quick
@pytest.mark.usefixtures("folder")
def test_a_file_says_it_and_options_override_it():
    for options, rate in (((), 0.25), (("--learning-rate", 0.5), 0.5)):
        result = succeed("build", "model.onnx", "--config", "train.toml", "-o", "t.onnx", *options)
        assert result.stdout == "t.onnx: trains 8 of 8 parameters\n"
        expected = graphopt.training_graph("model.onnx", "cross_entropy", optimizer(rate))
        assert graphopt.load("t.onnx").model == expected.model


@pytest.mark.usefixtures("folder")
def test_files_for_devices():
    succeed("export-on-device", "model.onnx", "--config", "train.toml", "-o", "device")
    graphopt.export_on_device(
        "model.onnx", "cross_entropy", optimizer(0.25), "expected", outputs=["logits"]
    )
    names = sorted(path.name for path in Path("expected").iterdir())
    assert sorted(path.name for path in Path("device").iterdir()) == names
    for name in names:
        assert Path("device", name).read_bytes() == Path("expected", name).read_bytes(), name
    options = ("--outputs", "logits", "--optimizer-model", "--loss", "cross_entropy", "-o", "own")
    result = succeed("export-on-device", "model.onnx", *options)
    assert "own/optimizer_model.onnx: " in result.stdout


@pytest.mark.usefixtures("folder")
def test_the_example_is_written_checked_and_built():
    assert succeed("config", "--example").stdout == graphopt.configuration.example()
    succeed("config", "--example", "-o", "example.toml")
    assert "no mistakes found" in succeed("config", "--check", "example.toml").stdout
    told = succeed("config", "--check", "example.toml", "model.onnx").stdout.splitlines()
    assert told[0] == "example.toml: trains 8 of 8 parameters"
    assert told[1].startswith("  group 0: learning rate SequentialLR, weight decay 0: conv1.bias,")
    assert told[2].startswith("  group 1: learning rate SequentialLR, weight decay 0.0001: conv1.w")
    succeed("build", "model.onnx", "--config", "example.toml", "-o", "t.onnx")


@pytest.mark.usefixtures("folder")
def test_what_is_frozen_is_said():
    Path("head.toml").write_text("[parameters]\nfreeze = ['conv*']", encoding="utf-8")
    result = succeed("config", "--check", "head.toml", "model.onnx")
    assert "frozen: conv1.weight, conv1.bias, conv2.weight, conv2.bias" in result.stdout
    assert "note: 'head.toml' has no graph.loss; give --loss to build" in result.stderr
    succeed("build", "model.onnx", "--config", "head.toml", "--loss", "mse", "-o", "t.onnx")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("build", "model.onnx", "-o", "t.onnx"), 2, "Missing option '--loss'"),
        (("build", "model.onnx", "-o", "t.onnx", "--config", "head.toml"), 2, "has no graph.loss"),
        (("build", "model.onnx", "-o", "t.onnx", "--config", "no.toml"), 1, "no file 'no.toml'"),
        (
            ("build", "model.onnx", "-o", "train.toml", "--config", "train.toml"),
            1,
            "--output: 'train.toml' is --config itself",
        ),
        (
            ("build", "model.onnx", "-o", "t.onnx", "--config", "wrong.toml"),
            1,
            "'wrong.toml': optimizer.momentun: there is no such key; did you mean",
        ),
        (
            ("build", "model.onnx", "-o", "t.onnx", "--config", "train.toml", "--epsilon", "0"),
            1,
            "error: epsilon: got 0.0",
        ),
        (
            ("build", "model.onnx", "-o", "t.onnx", "--config", "output.toml"),
            1,
            "'output.toml': graph.loss_output: got 'probabilities', expected one of 'logits'",
        ),
        (("config", "--check", "wrong.toml"), 1, "'wrong.toml': optimizer.momentun: "),
        (("config",), 2, "give --example, or --check FILE.toml"),
        (("config", "--example", "model.onnx"), 2, "needs --check"),
        (("config", "--check", "train.toml", "-o", "x.toml"), 2, "--output: needs --example"),
        (
            ("export-on-device", "model.onnx", "-o", "d", "--config", "chunks.toml"),
            1,
            "'chunks.toml': graph.layout: is of training graphs alone",
        ),
        (
            ("export-on-device", "model.onnx", "-o", "d", "--loss", "mse", "--outputs", "y"),
            1,
            "outputs: got 'y', expected outputs of the model",
        ),
    ],
)
def test_mistakes(folder, arguments, code, message):
    for name, text in {
        "head": "[optimizer]\nmomentum = 0.5",
        "wrong": "[optimizer]\nmomentun = 0.5",
        "chunks": "[graph]\nloss = 'mse'\nlayout = 'chunks'",
        "output": "[graph]\nloss = 'mse'\nloss_output = 'probabilities'",
    }.items():
        Path(f"{name}.toml").write_text(text, encoding="utf-8")
    before = sorted(folder.iterdir())
    result = run(*arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert sorted(folder.iterdir()) == before


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("words", "completed"),
    [("graphopt tr", ["train"]), ("graphopt train --vali", ["--validation"])],
)
def test_completion(words, completed):
    """What a shell asks the installed program, and gets."""
    program = Path(sys.executable).with_name("graphopt")
    asked = {"_GRAPHOPT_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(words.count(" "))
    answer = subprocess.run(
        [program], env={**os.environ, **asked}, capture_output=True, text=True, check=False
    )
    assert answer.stdout.split() == completed, answer.stderr
    assert "--show-completion" in succeed("--help").stdout
