"""``graphopt train --config``: its options stand in the section [train] of a configuration."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import typer

import graphopt
from graphopt import checkpoint, cli
from graphopt.configuration.schema import SECTIONS
from graphopt.examples import digits, digits_cnn
from tests.helpers.command_line import run, succeed

pytestmark = pytest.mark.any_runtime

KEYS = SECTIONS["train"].by_name
COMMAND = typer.main.get_command(cli.app).commands["train"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a training graph, and little data; the current one."""
    monkeypatch.chdir(tmp_path)
    model = digits_cnn.build()
    onnx.save(model, "model.onnx")
    optimizer = graphopt.RMSProp(graphopt.parameters(model), 0.002)
    graphopt.training_graph(model, "cross_entropy", optimizer).save("train.onnx")
    train = digits.load().train
    np.savez("digits.npz", x=train.x[:64], labels=train.labels[:64])
    np.savez("named.npz", pixels=train.x[:64], labels=train.labels[:64])
    return tmp_path


def write(text):
    Path("train.toml").write_text(text, encoding="utf-8")


def test_each_option_is_a_key():
    options = {parameter.name for parameter in COMMAND.params} - {"graph", "config", "help"}
    assert sorted(options) == sorted(KEYS)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_what_a_key_says_is_what_the_option_says(key):
    """As the command gets it: of its type, and a list where it is repeated."""
    beside = {"data": "d.npz", "epochs": "1"}
    beside.pop(key.name, None)
    needed = [word for name, text in beside.items() for word in (f"--{name}", text)]
    write(f"[train]\n{key.name} = {key.example}")
    told = ["train.onnx", "--config", "train.toml", *needed]
    from_file = COMMAND.make_context("train", told).params[key.name]
    written = {
        "feed": ["--feed", "x=pixels"],
        "constant": [
            *("--constant", "learning_rate=0.01", "--constant", "group_mask=[true, false]")
        ],
        "image_size": ["--image-size", "32x32"],
        "image_mean": ["--image-mean", "0.485,0.456,0.406"],
        "image_std": ["--image-std", "0.229,0.224,0.225"],
        "metric": ["--metric", "accuracy", "--metric", "f1"],
    }
    option = f"--{key.name.replace('_', '-')}"
    plain = [option.replace("--", "--no-")] if key.example == "false" else None
    more = written.get(key.name, plain or [option, key.example.strip('"')])
    by_option = COMMAND.make_context("train", ["train.onnx", *needed, *more]).params[key.name]
    assert from_file == by_option
    assert type(from_file) is type(by_option)


@pytest.mark.quick
@pytest.mark.usefixtures("folder")
def test_a_run_by_a_file_is_that_by_options_and_options_win():
    write(
        '[graph]\nloss = "cross_entropy"\n[train]\ndata = "named.npz"\nfeed = { x = "pixels" }\n'
        'epochs = 2\nbatch_size = 16\nseed = 3\ncheckpoint = "run"\nkeep = 2\nkeep_best = true\n'
    )
    succeed("train", "train.onnx", "--config", "train.toml")
    options = ("--data", "digits.npz", "--epochs", 2, "--batch-size", 16, "--seed", 3)
    kept = ("--checkpoint", "other", "--keep", 2, "--keep-best")
    succeed("train", "train.onnx", *options, *kept)
    names = sorted(path.name for path in Path("run").iterdir())
    assert names == sorted(path.name for path in Path("other").iterdir())
    first, second = (checkpoint.read(checkpoint.in_folder(Path(f))[-1]) for f in ("run", "other"))
    assert all(np.array_equal(first[name], second[name]) for name in second)
    more = ("--epochs", 3, "--checkpoint", "third", "--no-keep-best", "--seed", 4)
    succeed("train", "train.onnx", "--config", "train.toml", *more)
    assert checkpoint.in_folder(Path("third"))[-1].name == checkpoint.name_at(12)
    assert len(list(Path("third").iterdir())) == 2
    assert Path("run").exists()
    result = run("train", "train.onnx", "--config", "train.toml", "--checkpoint", "train.toml")
    assert (result.exit_code, "is --config itself" in result.output) == (1, True)


@pytest.mark.usefixtures("folder")
def test_one_file_builds_and_trains_and_the_example_does():
    succeed("config", "--example", "-o", "train.toml")
    succeed("build", "model.onnx", "--config", "train.toml", "-o", "built.onnx")
    said = succeed("train", "built.onnx", "--config", "train.toml", "--epochs", 1).output
    assert "checkpoint: checkpoints" in said


MISTAKES = {
    "kepp = 3": "'train.toml': train.kepp: there is no such key; did you mean 'train.keep'?",
    "batchsize = 3": "did you mean 'train.batch_size'?",
    "epochs = 0": "'train.toml': train.epochs: got 0, expected an int >= 1",
    "epochs = 2.5": "'train.toml': train.epochs: got 2.5 (float), expected an int >= 1",
    "keep_best = 1": "train.keep_best: got 1",
    "min_delta = -1": "train.min_delta: got -1.0 (float), expected a finite number >= 0",
    'data = ["a"]': "train.data: got ['a'] (list), expected a string",
    'feed = "x=y"': "train.feed: got 'x=y' (str), expected a table, { FEED = ... }",
    "constant = { rate = 2020-01-01 }": "train.constant.rate: got ",
    "image_size = [1, 2, 3]": "train.image_size: got [1, 2, 3], expected [HEIGHT, WIDTH]",
    'image_mean = ["a"]': "train.image_mean: got ['a'], expected a number, or one for each channel",
    "image_std = [0]": "train.image_std: got 0.0 (float), expected a finite number > 0",
    'distributed = "nccl"': "train.distributed: got 'nccl' (str), expected 'mpi' or 'torch'",
    "momentum = 0.9": "did you mean 'optimizer.momentum'?",
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_refused_before_anything_runs(text):
    write(f"[train]\n{text}")
    for command in (
        ("train", "train.onnx", "--config", "train.toml", "--data", "digits.npz", "--epochs", 1),
        ("config", "--check", "train.toml"),
    ):
        result = run(*command)
        assert result.exit_code == 1
        assert MISTAKES[text] in " ".join(result.output.split())


@pytest.mark.usefixtures("folder")
def test_check_says_what_must_stand_beside_it():
    write('[graph]\nloss = "mse"\n[train]\nepochs = 3\nexport_best = true\nlog_every = 2')
    said = succeed("config", "--check", "train.toml").output
    for name in ("data", "export", "keep-best", "log"):
        assert f"give --{name} to train" in said
    write('[graph]\nloss = "mse"\n')
    assert "to train" not in succeed("config", "--check", "train.toml").output
    result = run("train", "train.onnx", "--config", "train.toml")
    assert (result.exit_code, "Missing option '--data'" in result.output) == (2, True)
