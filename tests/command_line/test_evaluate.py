"""``graphopt evaluate``: the loss and the metrics of graphs and models, against NumPy."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphopt
from tests.helpers.command_line import run, succeed

COUNT = 50
MODEL = """<ir_version: 8, opset_import: ["": 17]>
m (float[{batch},4] x) => (float[{batch},3] logits, float[{batch},4] hidden) <float ratio = {{0.5}}>
{{
    hidden = Dropout (x, ratio, training)
    scaled = Mul (hidden, gain)
    logits = MatMul (scaled, w)
}}"""


def model(batch="N"):
    text = MODEL.format(batch=batch)
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, array in {
        "w": rng.normal(size=(4, 3)).astype(np.float32),
        "gain": np.float32([1, 2, 3, 4]),
        "training": np.array(True),
    }.items():
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a graph, data and a checkpoint after one step; the current one."""
    monkeypatch.chdir(tmp_path)
    onnx.save(model(), "model.onnx")
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(COUNT, 4)).astype(np.float32), rng.integers(0, 3, COUNT)
    np.savez("data.npz", x=x, labels=labels)
    optimizer = graphopt.RMSProp(graphopt.parameters("model.onnx"), 0.1, average=0.5)
    graph = graphopt.training_graph("model.onnx", "cross_entropy", optimizer, loss_output="logits")
    graph.save("train.onnx")
    session = graphopt.Session(graph)
    session.step({"x": x[:8], "labels": labels[:8]})
    session.step({"x": x[:8], "labels": labels[:8]})
    with graphopt.Checkpoints("run") as checkpoints:
        checkpoints.save(session, metric=2.0)
        session.step({"x": x[:8], "labels": labels[:8]})
        checkpoints.save(session, metric=3.0)
    return tmp_path


def expected(state, prefix=""):
    with np.load("data.npz") as data:
        x, labels = data["x"].astype(np.float64), data["labels"]
    logits = x * state[f"{prefix}gain"] @ state[f"{prefix}w"].astype(np.float64)
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    order = np.argsort(-logits, axis=1)
    return {
        "samples": COUNT,
        "loss": -log[np.arange(COUNT), labels].mean(),
        "accuracy": np.mean(order[:, 0] == labels),
        "top2": np.mean((order[:, :2] == labels[:, None]).any(axis=1)),
    }


def state_of(path):
    session = graphopt.Session("train.onnx")
    session.load_checkpoint(path)
    return session.state


def check(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


METRICS = ("--metric", "accuracy", "--metric", "top2")


@pytest.mark.quick
@pytest.mark.usefixtures("folder")
def test_a_graph_and_its_checkpoints():
    evaluate = ("evaluate", "train.onnx", "--data", "data.npz", "--json", *METRICS)
    newest, best = sorted(Path("run").iterdir())[::-1]
    for options, state, prefix in (
        ((), graphopt.Session("train.onnx").state, ""),
        (("--checkpoint", "run"), state_of(newest), ""),
        (("--checkpoint", "run", "--best"), state_of(best), ""),
        (("--checkpoint", "run", "--average", "--batch-size", 7), state_of(newest), "average."),
    ):
        check(json.loads(succeed(*evaluate, *options).stdout), expected(state, prefix))
    lines = succeed(*evaluate[:4]).stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["samples", "loss", "accuracy"]


@pytest.mark.usefixtures("folder")
def test_a_model_for_inference():
    succeed("export", "train.onnx", "--checkpoint", "run", "--best", "-o", "trained.onnx")
    options = ("--loss", "cross_entropy", "--output", "logits", "--json", *METRICS)
    result = succeed("evaluate", "trained.onnx", "--data", "data.npz", *options)
    best = min(Path("run").iterdir())
    check(json.loads(result.stdout), expected(state_of(best)))
    result = succeed("evaluate", "trained.onnx", "--data", "data.npz", *options[2:])
    wanted = expected(state_of(best))
    del wanted["loss"]
    check(json.loads(result.stdout), wanted)


@pytest.mark.usefixtures("folder")
def test_a_graph_of_fixed_size_leaves_samples_out():
    onnx.save(model(batch=20), "model.onnx")
    optimizer = graphopt.RMSProp(graphopt.parameters("model.onnx"), 0.1)
    graphopt.training_graph("model.onnx", "mse", optimizer, loss_output="logits").save("t.onnx")
    rng = np.random.default_rng(0)
    x, labels = (rng.normal(size=(COUNT, n)).astype(np.float32) for n in (4, 3))
    state = graphopt.Session("t.onnx").state
    error = (x * state["gain"] @ state["w"] - labels)[:40].astype(np.float64)
    np.savez("numbers.npz", x=x, labels=labels)
    result = succeed("evaluate", "t.onnx", "--data", "numbers.npz", "--json")
    check(
        json.loads(result.stdout),
        {
            "samples": 40,
            "loss": np.mean(error**2),
            "mae": np.mean(np.abs(error)),
        },
    )
    result = succeed("evaluate", "t.onnx", "--data", "numbers.npz")
    assert "leaves out 10 samples: the graph takes 20 at a time" in result.stderr
    np.savez("few.npz", x=x[:5], labels=labels[:5])
    result = run("evaluate", "t.onnx", "--data", "few.npz")
    assert "there are 5 samples, and the graph takes 20 at a time" in result.stderr


@pytest.mark.usefixtures("folder")
def test_a_loss_that_is_a_function_is_not_in_the_file():
    def loss(op, logits, hidden):  # noqa: ARG001
        target = op.input("target", np.int64, ["N"])
        return op.ReduceMean(op.Sub(logits, op.Unsqueeze(op.Cast(target, to=1), [1])), keepdims=0)

    optimizer = graphopt.RMSProp(graphopt.parameters("model.onnx"), 0.1)
    graphopt.training_graph("model.onnx", loss, optimizer).save("t.onnx")
    result = run("evaluate", "t.onnx", "--data", "data.npz", "--feed", "target=labels")
    assert "the graph's loss is a function in Python" in result.stderr
    arguments = ("evaluate", "t.onnx", "--data", "data.npz", "--feed", "target=labels")
    result = succeed(*arguments, "--output", "logits", "--metric", "accuracy", "--json")
    wanted = expected(graphopt.Session("train.onnx").state)["accuracy"]
    assert json.loads(result.stdout) == {"samples": COUNT, "accuracy": wanted}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train.onnx", "--data", "absent.npz"), "no file 'absent.npz'"),
        (("absent.onnx", "--data", "data.npz"), "no file 'absent.onnx'"),
        (("train.onnx", "--data", "data.npz", "--metric", "blue"), "metric: got 'blue', expected"),
        (("train.onnx", "--data", "data.npz", "--loss", "mse"), "--loss: 'train.onnx' is a"),
        (("model.onnx", "--data", "data.npz", "--checkpoint", "run"), "--checkpoint: 'model.onnx'"),
        (("model.onnx", "--data", "data.npz"), "there is nothing to evaluate"),
        (("train.onnx", "--data", "data.npz", "--output", "y"), "of output 'y' with labels"),
        (("train.onnx", "--data", "data.npz", "--metric", "mae"), "mae: got outputs [32, 3] and"),
        (
            ("train.onnx", "--data", "data.npz", "--checkpoint", "absent", "--best"),
            "'absent' is no folder of checkpoints",
        ),
        (("train.onnx", "--data", "data.npz", "--best"), "--best: needs --checkpoint"),
        (("train.onnx", "--data", "data.npz", "--image-size", "big"), "--image-size: got 'big'"),
        (("train.onnx", "--data", "data.npz", "--image-std", "0"), "--image-std: got '0'"),
        (("train.onnx", "--data", "data.npz", "--feed", "x"), "--feed: got 'x', expected NAME="),
    ],
)
def test_mistakes(arguments, message):
    result = run("evaluate", *arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert message in line


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y * 0 - 1), "feed 'labels': got label -1, expected classes 0 to 2"),
        (lambda x, y: (x.astype(np.float64), y), "feed 'x': got dtype float64, expected float32"),
        (lambda x, y: (x[:, :1], y), "feed 'x': got shape"),
    ],
)
def test_data_that_do_not_fit_are_named(change, message):
    with np.load("data.npz") as data:
        x, labels = change(data["x"], data["labels"])
    np.savez("other.npz", x=x, labels=labels)
    result = run("evaluate", "train.onnx", "--data", "other.npz")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {message}")
