"""``graphopt train``: validation, early stopping, the best epoch, logs, plots, kinds of data."""

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

import graphopt
from graphopt import checkpoint, schedules
from graphopt.command_line.progress import progress_bar
from graphopt.training_run import History
from tests.helpers.command_line import run, succeed

pytestmark = pytest.mark.any_runtime

MODEL = """<ir_version: 8, opset_import: ["": 17]>
m (float[N,2,2,2] x) => (float[N,3] logits) { flat = Flatten (x) logits = MatMul (flat, w) }"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a training graph and data: 40 samples to train, 20 others; the current one."""
    monkeypatch.chdir(tmp_path)
    made = onnx.parser.parse_model(MODEL)
    made.graph.initializer.append(numpy_helper.from_array(np.zeros((8, 3), np.float32), "w"))
    onnx.save(made, "model.onnx")
    build()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2, 2, 2)).astype(np.float32)
    labels = (x.reshape(60, 8)[:, :3] + rng.normal(size=(60, 3))).argmax(axis=1)
    np.savez("data.npz", x=x[:40], labels=labels[:40])
    np.savez("held.npz", x=x[40:], labels=labels[40:])
    return tmp_path


def build(rate=0.05, **settings):
    parameters = graphopt.parameters("model.onnx")
    optimizer = graphopt.RMSProp(parameters, rate, momentum=0.9)
    graphopt.training_graph("model.onnx", "cross_entropy", optimizer, **settings).save("train.onnx")


def state(path):
    session = graphopt.Session("train.onnx")
    session.load_checkpoint(path)
    return session.state


def same(first, second):
    first, second = state(first), state(second)
    return all(np.array_equal(first[name], second[name]) for name in first)


def notes(folder):
    return {path.name: checkpoint.read_stored(path).note for path in sorted(Path(folder).iterdir())}


RUN = ("train", "train.onnx", "--data", "data.npz", "--batch-size", 16, "--seed", 3)
VALID = (*RUN, "--validation", "held.npz")


@pytest.mark.quick
@pytest.mark.usefixtures("folder")
def test_validation_is_what_evaluate_says():
    result = succeed(*VALID, "--epochs", 3, "--checkpoint", "run", "--metric", "top2")
    (note,) = (notes("run")[f"step-{9:010}.safetensors"],)
    history = note["history"]
    assert [(epoch["epoch"], epoch["step"]) for epoch in history] == [(1, 3), (2, 6), (3, 9)]
    for epoch in history:
        path = f"run/step-{epoch['step']:010}.safetensors"
        evaluate = ("evaluate", "train.onnx", "--checkpoint", path, "--data", "held.npz")
        found = json.loads(succeed(*evaluate, "--metric", "top2", "--json").stdout)
        assert found["loss"] == pytest.approx(epoch["validation loss"], rel=1e-6)
        assert found["top2"] == epoch["validation top2"]
    assert f"epoch 3: loss {history[2]['loss']:.4f}, validation loss" in result.stdout
    lines = [line for line in result.stderr.splitlines() if "validation loss" in line]
    assert [line[:9] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert lines[0].endswith("(best)")


@pytest.mark.usefixtures("folder")
def test_epochs_are_the_total_whatever_it_goes_on_from():
    succeed(*RUN, "--epochs", 2, "--checkpoint", "run")
    assert "goes on after step 6 of 24" in succeed(*RUN, "--epochs", 8, "--resume", "run",
                                                   "--checkpoint", "more").stdout  # fmt: skip
    assert state("more")["global_step"] == 8 * 3
    again = succeed(*RUN, "--epochs", 8, "--resume", "more")
    assert "nothing to do" in again.stdout
    assert "24/24" in again.stderr
    assert "loss" not in again.stderr  # there is none


STOPPING = ("--patience", 2, "--keep-best", "--keep", 1, "--monitor", "accuracy")
BAD = ("--min-delta", 2)  # nothing is better by so much, so that the third epoch is the last


@pytest.mark.usefixtures("folder")
def test_early_stopping_goes_on_as_if_never_interrupted():
    """The best value, the epochs waited, and the end are the same wherever the run was cut."""
    whole = succeed(*VALID, "--epochs", 30, "--checkpoint", "whole", *STOPPING)
    assert "stopped early: 2 epochs without a better validation accuracy" in whole.stdout
    epochs = [note["history"] for note in notes("whole").values()][-1]
    assert 3 <= len(epochs) < 30
    values = [epoch["validation accuracy"] for epoch in epochs]
    assert max(values) not in values[-2:]
    best = values.index(max(values))
    assert f"best: epoch {best + 1}: " in whole.stdout
    kept = sorted(epoch["step"] for epoch in (epochs[best], epochs[-1]))
    assert list(notes("whole")) == [f"step-{step:010}.safetensors" for step in kept]
    for cut in (1, 4, 5, epochs[-1]["step"] - 1):
        target = f"cut{cut}"
        options = ("--save-every", 1, "--keep", 99, *STOPPING[:3], *STOPPING[5:])
        succeed(*VALID, "--epochs", 30, "--checkpoint", target, *options)
        for path in sorted(Path(target).iterdir())[cut:]:  # as if killed there
            path.unlink()
        result = succeed(*VALID, "--epochs", 30, "--checkpoint", target, *STOPPING)
        assert f"goes on after step {cut} of 90" in result.stdout
        assert notes(target) == notes("whole")
        assert same(target, "whole")
    again = succeed(*VALID, "--epochs", 30, "--checkpoint", "whole", *STOPPING)
    assert "nothing to do" in again.stdout
    assert "stopped early" in again.stdout
    longer = succeed(*VALID, "--epochs", len(epochs) + 1, "--checkpoint", "whole", "--patience", 9,
                     *STOPPING[2:])  # fmt: skip
    assert f"goes on after step {epochs[-1]['step']}" in longer.stdout


@pytest.mark.usefixtures("folder")
def test_a_gain_that_is_too_small_does_not_count():
    result = succeed(*VALID, "--epochs", 30, "--checkpoint", "run", "--patience", 2, *BAD)
    assert state("run")["global_step"] == 3 * 3
    assert "(--patience 2)" in result.stdout
    result = succeed(*RUN, "--epochs", 30, "--checkpoint", "own", "--patience", 1, *BAD)
    assert "without a better loss" in result.stdout  # that of training


@pytest.mark.usefixtures("folder")
def test_the_best_is_exported():
    options = ("--keep-best", "--keep", 1, "--monitor", "accuracy", "--export", "m.onnx")
    succeed(*VALID, "--epochs", 12, "--checkpoint", "run", *options, "--export-best")
    (history,) = (list(notes("run").values())[-1]["history"],)
    values = [epoch["validation accuracy"] for epoch in history]
    step = history[values.index(max(values))]["step"]
    wanted = state(f"run/step-{step:010}.safetensors")["w"]
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load("m.onnx").graph.initializer}
    np.testing.assert_array_equal(tensors["w"], wanted)
    succeed("export", "train.onnx", "--checkpoint", "run", "--best", "-o", "b.onnx")
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load("b.onnx").graph.initializer}
    np.testing.assert_array_equal(tensors["w"], wanted)
    result = run("train", *RUN[1:], "--epochs", 1, "--export-best")
    assert "--export-best: needs --export and --keep-best" in result.stderr


@pytest.mark.usefixtures("folder")
def test_the_best_stays_when_there_is_nothing_to_do():
    command = (*RUN, "--epochs", 2, "--checkpoint", "run", "--keep-best", "--export", "m.onnx")
    succeed(*command, "--export-best")
    before = notes("run")
    assert "nothing to do" in succeed(*command, "--export-best").stdout
    assert notes("run") == before
    assert all("metric" in note for note in before.values())


@pytest.mark.usefixtures("folder")
def test_a_best_epoch_that_was_not_kept_is_not_exported():
    build(rate=50.0)  # the first epoch stays the best
    command = (*RUN, "--checkpoint", "run", "--export", "m.onnx")
    succeed(*command, "--epochs", 1)
    result = run(*command, "--epochs", 2, "--keep-best", "--export-best")
    assert result.exit_code == 1
    assert "the checkpoint of the best epoch, 1, was not kept" in result.stderr


@pytest.mark.usefixtures("folder")
def test_what_is_said_of_epochs_with_updates_after_several_steps():
    """Rates are those of the updates, and the mean loss has the steps before the run went on."""
    rate = schedules.ExponentialDecayLR(0.1, 0.5, 1)
    build(rate, accumulation=2)
    command = (*RUN, "--checkpoint", "run", "--log", "log.jsonl", "--log-every", 1)
    ended = succeed(*command, "--epochs", 2, "--save-every", 1)
    found = [row["learning_rate"] for row in rows("log.jsonl") if row["row"] == "step"]
    assert found == pytest.approx([rate.value(step) for step in (0, 0, 0, 1, 1, 2)], rel=1e-6)
    shutil.copy("run/step-0000000002.safetensors", "middle.safetensors")  # at position 5
    again = (*RUN, "--resume", "middle.safetensors", "--checkpoint", "other", "--epochs", 2)
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("mean loss"))
    assert line in succeed(*again).stdout


@pytest.mark.usefixtures("folder")
def test_a_run_does_not_go_on_with_constants_that_it_did_not_have():
    build(group_mask=True)
    command = (*RUN, "--checkpoint", "run")
    for first, second in (
        ((), ("--constant", "group_mask=[false]")),
        (("--constant", "group_mask=[true]"), ()),
    ):
        succeed(*command, "--epochs", 1, *first)
        result = run(*command, "--epochs", 2, *second)
        assert result.exit_code == 1
        assert "the checkpoint was trained with another constants" in result.stderr
        shutil.rmtree("run")


@pytest.mark.usefixtures("folder")
def test_classes_of_validation_are_those_of_training():
    Image = pytest.importorskip("PIL.Image")  # noqa: N806 - its name
    for path in ("train/ant", "train/bee", "train/cat", "held/ant", "held/cat"):
        Path(path).mkdir(parents=True)
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(f"{path}/0.png")
    made = onnx.parser.parse_model(MODEL.replace("[N,2,2,2]", "[N,3,2,2]"))
    made.graph.initializer.append(numpy_helper.from_array(np.zeros((12, 3), np.float32), "w"))
    onnx.save(made, "model.onnx")
    build()
    command = ("train", "train.onnx", "--data", "train", "--validation", "held", "--epochs", 1)
    result = run(*command)
    assert result.exit_code == 1
    assert "'held' has no class 'bee'" in result.stderr
    Path("held/bee").mkdir()
    succeed(*command)
    Path("held/dog").mkdir()
    assert "'held' alone has a class 'dog'" in run(*command).stderr


def test_history_with_values_that_are_none():
    history = History("validation loss", patience=2, least=0.1)
    for epoch, loss in enumerate([float("nan"), 1.0, 0.95, 0.7, 0.75, 0.65]):
        history.add(epoch + 1, epoch + 1, {"validation loss": loss})
        assert history.has_ended == (epoch == 5)
    assert (history.mode, history.best["epoch"], history.waited) == ("min", 6, 2)


MEASURED = ("learning_rate", "seconds", "examples_per_second")


def rows(path):
    text = Path(path).read_text()
    if path.endswith(".csv"):
        return list(csv.DictReader(text.splitlines()))
    return [json.loads(line) for line in text.splitlines()]


def steady(path):
    """The rows without what a clock has measured."""
    return [{k: v for k, v in row.items() if k not in MEASURED[1:]} for row in rows(path)]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_the_log_goes_on_with_the_run(name):
    build(schedules.WarmUpLR(0.1, 100))
    log = (*VALID, "--epochs", 4, "--log-every", 2, "--save-every", 1, "--keep", 99)
    succeed(*log, "--checkpoint", "run", "--log", name)
    whole = steady(name)
    kinds = [(row["row"], int(row["epoch"]), int(row["step"])) for row in whole]
    steps = [("step", (n - 1) // 3 + 1, n) for n in range(2, 13, 2)]
    epochs = [("epoch", n // 3, n) for n in range(3, 13, 3)]
    assert sorted(kinds, key=lambda k: (k[2], k[0])) == sorted(
        [*steps, *epochs], key=lambda k: (k[2], k[0])
    )
    for row in whole:
        rate = 0.1 * (int(row["step"]) - 1) / 100
        assert float(row["learning_rate"]) == pytest.approx(rate, rel=1e-12)
        assert bool(row.get("validation loss")) == (row["row"] == "epoch")
    assert all(float(row["examples_per_second"]) > 0 for row in rows(name))
    for path in sorted(Path("run").iterdir())[5:]:
        path.unlink()
    with Path(name).open("a") as file:
        file.write("epoch,9")  # a line that a kill has cut
    succeed(*log, "--checkpoint", "run", "--log", name)
    assert steady(name) == whole
    succeed(*log, "--checkpoint", "anew", "--log", name)
    assert steady(name) == whole
    Path(name).write_text("other\nthing\n")
    result = run(*log[:-4], "--epochs", 5, "--checkpoint", "run", "--log", name)
    assert result.exit_code == 1
    assert "give another file" in result.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("options", [(), ("--validation", "held.npz")])
def test_the_plot(options):
    pytest.importorskip("matplotlib")
    for name, head in (("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.pdf", b"%PDF")):
        succeed(*RUN, *options, "--epochs", 2, "--checkpoint", f"{name}-run", "--plot", name)
        assert Path(name).read_bytes().startswith(head)
    text = Path("p.svg").read_text()
    assert ("validation accuracy" in text) == bool(options)


@pytest.mark.usefixtures("folder")
def test_other_data_to_validate_on_is_another_run():
    options = ("--epochs", 2, "--checkpoint", "run")
    succeed(*VALID, *options, "--patience", 5)
    with np.load("held.npz") as held:
        np.savez("other.npz", **{k: v[::-1] for k, v in held.items()})
    result = run(*RUN, "--validation", "other.npz", *options)
    assert "another validation data; give the same" in result.stderr
    result = run(*VALID, *options, "--patience", 5, "--monitor", "accuracy")
    assert "monitored value: it was validation loss, and is validation accuracy" in result.stderr


@pytest.mark.usefixtures("folder")
def test_constants_feed_masks_and_rates():
    build(schedules.FromCaller("rate"), group_mask=True)
    result = run(*RUN, "--epochs", 1)
    assert "'rate' is missing" in result.stderr
    constant = ("--constant", "rate=0.5")
    succeed(*RUN, "--epochs", 1, *constant, "--checkpoint", "on")
    succeed(*RUN, "--epochs", 1, *constant, "--checkpoint", "off",
            "--constant", "group_mask=[false]")  # fmt: skip
    assert np.any(state("on")["w"])
    assert not np.any(state("off")["w"])
    result = run(*RUN, "--epochs", 2, "--constant", "rate=0.25", "--checkpoint", "on")
    assert "another constants" in result.stderr
    for text, message in (
        ("rate", "--constant: got 'rate', expected NAME=VALUE"),
        ("rates=1", "--constant: got 'rates', expected one of x, "),
        ('rate="a"', "expected float32[] in JSON"),
    ):
        assert message in run(*RUN, "--epochs", 1, "--constant", text).stderr


@pytest.mark.usefixtures("folder")
def test_kinds_of_data_go_on_in_the_middle_of_an_epoch():
    Image = pytest.importorskip("PIL.Image")  # noqa: N806 - its name
    with np.load("data.npz") as data:
        x, labels = data["x"], data["labels"]
    Path("arrays", "x").mkdir(parents=True)
    np.save("arrays/x/0.npy", x[:11])
    np.save("arrays/x/1.npy", x[11:])
    np.save("arrays/labels.npy", labels)
    kinds = {"arrays": "train.onnx"}
    made = onnx.load("model.onnx")
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((12, 3), np.float32), "w"))
    onnx.save(made, "rgb.onnx")
    succeed("build", "rgb.onnx", "--loss", "cross_entropy", "-o", "rgb_train.onnx")
    rng = np.random.default_rng(0)
    for index, label in enumerate(labels):
        Path("pictures", str(label)).mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (5, 4, 3), np.uint8)
        Image.fromarray(picture).save(f"pictures/{label}/{index}.png")
    kinds["pictures"] = "rgb_train.onnx"
    for kind, graph in kinds.items():
        command = ("train", graph, "--data", kind, "--batch-size", 16, "--epochs", 2, "--seed", 3)
        options = ("--validation", kind, "--save-every", 1, "--keep", 9, "--keep-best")
        succeed(*command, *options, "--checkpoint", f"{kind}-whole")
        middle = sorted(Path(f"{kind}-whole").iterdir())[3]
        target = f"{kind}-resumed"
        succeed(*command, *options, "--resume", middle, "--checkpoint", target)
        first, second = (
            checkpoint.read_stored(max(Path(f"{kind}-{run}").iterdir()))
            for run in ("whole", "resumed")
        )
        assert first.note == {k: v for k, v in second.note.items() if k != "began with"}
        for name, value in first.state.items():
            np.testing.assert_array_equal(second.state[name], value)
    succeed(*RUN, "--epochs", 2, "--checkpoint", "npz")
    assert same("npz", "arrays-whole")  # the same samples in the same order
    np.save("arrays/labels.npy", labels[::-1])
    command = ("train", "train.onnx", "--data", "arrays", *RUN[4:], "--epochs", 3)
    result = run(*command, "--checkpoint", "arrays-whole")
    assert "another data; give the same" in result.stderr


@pytest.mark.usefixtures("folder")
def test_the_group_mask_is_no_batch_size():
    build(group_mask=True)
    succeed("train", "train.onnx", "--data", "data.npz", "--epochs", 1, "--checkpoint", "run")
    assert state("run")["global_step"] == 2  # of 32 and 8 samples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "accuracy"), "--metric: needs --validation"),
        (("--monitor", "accuracy"), "--monitor: got 'accuracy', expected loss; metrics need"),
        (("--validation", "held.npz", "--monitor", "f1"), "expected loss, accuracy"),
        (("--validation", "absent.npz"), "no file 'absent.npz'"),
        (("--validation", "held.npz", "--metric", "blue"), "metric: got 'blue'"),
        (("--log", "log.txt"), "--log: got 'log.txt', expected a name that ends with .csv"),
        (("--log", "absent/log.csv"), "'absent' does not exist"),
        (("--log-every", "2"), "--log-every: needs --log FILE"),
        (("--plot", "plot.gif"), "--plot: got 'plot.gif', expected a name that ends with"),
        (("--plot", "absent/plot.png"), "'absent' does not exist"),
        (("--log", "x.csv", "--plot", "x.csv"), "which is written too"),
        (("--keep-best", "--checkpoint", "c.ckpt"), "--keep-best: needs a folder"),
        (("--image-mean", "a,b"), "--image-mean: got 'a,b'"),
    ],
)
def test_mistakes(folder, arguments, message):
    before = sorted(folder.iterdir())
    result = run(*RUN, "--epochs", 1, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(folder.iterdir()) == before


@pytest.mark.usefixtures("folder")
def test_nothing_that_is_read_is_overwritten():
    Path("arrays").mkdir()
    with np.load("data.npz") as data:
        np.save("arrays/x.npy", data["x"])
        np.save("arrays/labels.npy", data["labels"])
    before = Path("arrays/x.npy").read_bytes(), Path("held.npz").read_bytes()
    command = ("train", "train.onnx", "--data", "arrays", "--validation", "held.npz", "--epochs", 1)
    for option in ("--export", "--checkpoint"):
        result = run(*command, option, "arrays/x.npy")
        assert "which is read; write to another file" in result.stderr
        result = run(*command, option, "held.npz")
        assert "which is read; write to another file" in result.stderr
    assert before == (Path("arrays/x.npy").read_bytes(), Path("held.npz").read_bytes())


@pytest.mark.usefixtures("folder")
def test_matplotlib_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(*RUN, "--epochs", 1, "--plot", "p.png")
    assert "pip install 'graphopt[plot]'" in result.stderr
    assert not Path("train.safetensors").exists()


def test_the_bar_is_one_line():
    bar = progress_bar(128)
    task = bar.add_task("epoch 20/20", total=45_000, loss="loss 0.0124", rate="rate 0.00012")
    bar.update(task, completed=45_000)
    bar.tasks[0].finished_speed = 120.0
    console = Console(width=80, file=io.StringIO())
    console.print(bar.get_renderable())
    (line,) = console.file.getvalue().splitlines()
    assert "45000/45000 loss 0.0124 rate 0.00012 15360 examples/s" in line
