"""The command line, run for real."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

import graphopt
import graphopt_command
from graphopt import checkpoint
from graphopt.examples import digits, digits_cnn
from tests.helpers import everything
from tests.helpers.command_line import run, succeed
from tests.helpers.deep import deep
from tests.helpers.folders import ROOT

pytestmark = pytest.mark.any_runtime


def load(path):
    with np.load(path) as archive:
        return dict(archive)


def state(graph, checkpoint):
    session = graphopt.Session(graph)
    session.load_checkpoint(checkpoint)
    return session.state


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a forward model, its training graph and 100 samples; the current one."""
    monkeypatch.chdir(tmp_path)
    onnx.save(digits_cnn.build(), "forward.onnx")
    samples = digits.Samples(*(array[:100] for array in digits.load().train))
    np.savez("digits.npz", **samples._asdict())
    succeed(
        *("build", "forward.onnx", "--loss", "cross_entropy", "--learning-rate", 0.001),
        *("--momentum", 0.9, "--epsilon", 1e-3, "-o", "train.onnx"),
    )
    return tmp_path


@pytest.mark.parametrize("command", ["build", "train", "export", "profile"])
def test_help_has_an_example_of_the_command(command):
    result = succeed(command, "--help")
    assert f"Example: graphopt {command} " in " ".join(result.output.split())


def test_runs_as_a_module():
    arguments = [sys.executable, "-m", "graphopt", "--help"]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert "Usage: graphopt " in output


def test_import_leaves_the_runtime_and_what_is_slow_out():
    slow = {"matplotlib", "onnx.reference", "onnxruntime", "pyarrow", "torch"}
    program = f"import graphopt.cli, sys; print({slow}.intersection(sys.modules))"
    arguments = [sys.executable, "-c", program]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"


@pytest.mark.usefixtures("folder")
def test_build_passes_every_hyperparameter_on():
    succeed(
        *("build", "forward.onnx", "--loss", "cross_entropy", "-o", "built.onnx"),
        *("--learning-rate", 0.02, "--decay", 0.8, "--momentum", 0.5, "--epsilon", 1e-4),
        *("--weight-decay", 0.01, "--loss-scale", 8, "--centered", "--use-locking"),
    )
    forward = digits_cnn.build()
    optimizer = graphopt.RMSProp(
        graphopt.parameters(forward),
        learning_rate=0.02,
        decay=0.8,
        momentum=0.5,
        epsilon=1e-4,
        use_locking=True,
        centered=True,
        loss_scale=8.0,
        weight_decay=0.01,
    )
    expected = graphopt.training_graph(forward, loss="cross_entropy", optimizer=optimizer)
    assert graphopt.load("built.onnx").model == expected.model


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (("--loss-scale", "dynamic"), {"loss_scale": graphopt.DynamicLossScale()}),
        (
            ("--loss-scale", "1e3", "--skip-on-overflow", "--clip-value", "0.5"),
            {"loss_scale": 1000.0, "skip_on_overflow": True, "clip_value": 0.5},
        ),
        (
            ("--clip-norm", "5", "--clip-norm-per", "parameter"),
            {"clip_norm": 5.0, "clip_norm_per": "parameter"},
        ),
    ],
)
@pytest.mark.usefixtures("folder")
def test_build_scales_and_clips(options, arguments):
    succeed(*("build", "forward.onnx", "--loss", "cross_entropy", "-o", "scaled.onnx"), *options)
    forward = digits_cnn.build()
    optimizer = graphopt.RMSProp(graphopt.parameters(forward), **arguments)
    expected = graphopt.training_graph(forward, loss="cross_entropy", optimizer=optimizer)
    assert graphopt.load("scaled.onnx").model == expected.model


def test_build_takes_a_seed(tmp_path):
    onnx.save(everything.network(), tmp_path / "net.onnx")
    built = tmp_path / "train.onnx"
    succeed("build", tmp_path / "net.onnx", "--loss", "mse", "--seed", 9, "-o", built)
    assert graphopt.Session(built).state["random_seed"] == 9
    result = run("build", tmp_path / "net.onnx", "--loss", "mse", "--seed", -1, "-o", built)
    assert "seed: got -1, expected an int >= 0" in result.stderr


@pytest.mark.usefixtures("folder")
def test_build_computes_again_what_it_is_told_to():
    onnx.save(deep(8), "deep.onnx")
    succeed(
        *("build", "deep.onnx", "--loss", "mse", "-o", "low.onnx"),
        *("--memory", "low", "--learning-rate", 0.1),
    )
    optimizer = graphopt.RMSProp(graphopt.parameters("deep.onnx"))
    expected = graphopt.training_graph("deep.onnx", "mse", optimizer, memory="low")
    built = graphopt.load("low.onnx").model.graph
    assert built == expected.model.graph
    assert any("/again" in node.name for node in built.node)


@pytest.mark.usefixtures("folder")
def test_frozen_parameters_stay_as_they_are():
    result = succeed(
        *("build", "forward.onnx", "--loss", "cross_entropy", "-o", "head.onnx"),
        *("--freeze", "conv*", "--freeze", "dense1.?ias"),
    )
    assert result.stdout == "head.onnx: trains 3 of 8 parameters\n"
    succeed(*("train", "head.onnx", "--data", "digits.npz", "--epochs", 1, "--export", "out.onnx"))
    before, after = (onnx.load(path).graph.initializer for path in ("forward.onnx", "out.onnx"))
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in after}
    changed = [
        t.name for t in before if not np.array_equal(numpy_helper.to_array(t), after[t.name])
    ]
    assert changed == ["dense1.weight", "dense2.weight", "dense2.bias"]


@pytest.mark.usefixtures("folder")
def test_loss_of_one_of_several_outputs():
    model = digits_cnn.build()
    value = onnx.helper.make_tensor_value_info("relu3", onnx.TensorProto.FLOAT, ["batch", 64])
    model.graph.output.append(value)
    onnx.save(model, "two.onnx")
    arguments = ("build", "two.onnx", "--loss", "cross_entropy", "-o", "built.onnx")
    assert "several outputs" in run(*arguments).stderr
    succeed(*arguments, "--loss-output", "logits")


@pytest.mark.quick
@pytest.mark.usefixtures("folder")
def test_build_train_export_round_trip():
    result = succeed(
        *("train", "train.onnx", "--data", "digits.npz", "--epochs", 30, "--batch-size", 16),
        *("--checkpoint", "state.safetensors", "--export", "trained.onnx"),
    )
    first_line, *_ = result.stdout.splitlines()
    assert float(first_line.removeprefix("mean loss of the last epoch: ")) < 0.1
    succeed("export", "train.onnx", "--checkpoint", "state.safetensors", "-o", "exported.onnx")

    samples = load("digits.npz")
    outputs = []
    for model in ("trained.onnx", "exported.onnx"):
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        outputs.append(session.run(["logits"], {"x": samples["x"]})[0])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert np.mean(outputs[0].argmax(axis=1) == samples["labels"]) >= 0.97
    # 100 samples are seven steps of 16, the last of which has four.
    assert state("train.onnx", "state.safetensors")["global_step"] == 30 * 7


@pytest.mark.usefixtures("folder")
def test_resumed_run_is_the_uninterrupted_one():
    train = ("train", "train.onnx", "--data", "digits.npz", "--batch-size", 16, "--seed", 5)
    succeed(*train, "--epochs", 2, "--checkpoint", "whole")
    succeed(*train, "--epochs", 1, "--checkpoint", "half")
    succeed(*train, "--epochs", 2, "--checkpoint", "resumed", "--resume", "half")
    whole = state("train.onnx", "whole")
    assert_same_state(whole, state("train.onnx", "resumed"))

    succeed(*train[:-1], 6, "--epochs", 2, "--checkpoint", "other")
    other = state("train.onnx", "other")
    assert not np.array_equal(whole["dense2.weight"], other["dense2.weight"])


@pytest.mark.usefixtures("folder")
def test_a_checkpoint_without_a_position_tells_the_steps_by_its_counters():
    model = digits_cnn.build()
    opt = graphopt.RMSProp(graphopt.parameters(model), 1e-3, skip_on_overflow=True)
    graph = graphopt.training_graph(model, "cross_entropy", opt, accumulation=3)
    graph.save("adding.onnx")
    session, samples = graphopt.Session(graph), load("digits.npz")
    feeds = {"x": samples["x"][:16], "labels": samples["labels"][:16]}
    session.step(feeds | {"x": np.full_like(feeds["x"], np.nan)})
    for _ in range(4):
        session.step(feeds)
    assert session.global_step == 1
    session.save_checkpoint("there.safetensors")
    train = ("train", "adding.onnx", "--data", "digits.npz", "--batch-size", 16, "--epochs", 1)
    result = succeed(*train, "--checkpoint", "here", "--resume", "there.safetensors")
    assert "goes on after step 5 of 7" in result.stdout
    assert state("adding.onnx", "here")["accumulation_count"] == 0


RUN = ("train", "train.onnx", "--data", "digits.npz", "--batch-size", 16, "--seed", 5)


@pytest.mark.usefixtures("folder")
def test_the_same_command_goes_on_until_all_epochs_are_done():
    succeed(*RUN, "--epochs", 3, "--checkpoint", "whole.safetensors")
    whole = state("train.onnx", "whole.safetensors")
    for target in ("run", "file.safetensors"):
        succeed(*RUN, "--epochs", 1, "--checkpoint", target, "--save-every", 2)
        result = succeed(*RUN, "--epochs", 3, "--checkpoint", target, "--save-every", 2)
        assert "goes on after step 7 of 21" in result.stdout
        assert_same_state(whole, state("train.onnx", target))
        result = succeed(*RUN, "--epochs", 3, "--checkpoint", target)
        assert "nothing to do: 21 of 21 steps were done before" in result.stdout
        assert_same_state(whole, state("train.onnx", target))
    assert [path.name for path in sorted(Path("run").iterdir())] == [
        f"step-{step:010}.safetensors" for step in (18, 20, 21)
    ]


@pytest.mark.usefixtures("folder")
def test_in_the_middle_of_an_epoch():
    succeed(*RUN, "--epochs", 2, "--checkpoint", "whole", "--save-every", 3, "--keep", 9)
    for step in (3, 6, 9, 12):
        middle = f"whole/step-{step:010}.safetensors"
        resumed = f"from{step}.safetensors"
        succeed(*RUN, "--epochs", 2, "--checkpoint", resumed, "--resume", middle)
        assert_same_state(state("train.onnx", "whole"), state("train.onnx", resumed))


@pytest.mark.usefixtures("folder")
def test_a_run_on_other_data_is_another_run():
    succeed(*RUN, "--epochs", 1, "--checkpoint", "run")
    before = state("train.onnx", "run")
    samples = load("digits.npz")
    np.savez("other.npz", **{name: array[::-1] for name, array in samples.items()})
    for arguments, message in (
        ((*RUN[:-1], 6), "another seed: it was 5, and is 6"),
        ((*RUN[:5], 20, *RUN[6:]), "another batch size: it was 16, and is 20"),
        ((*RUN[:3], "other.npz", *RUN[4:]), "another data; give the same"),
    ):
        result = run(*arguments, "--epochs", 2, "--checkpoint", "run")
        assert result.exit_code == 1
        assert message in result.stderr
    assert_same_state(before, state("train.onnx", "run"))
    result = run(*RUN, "--epochs", 1, "--checkpoint", "new.safetensors", "--background")
    assert "--background: needs a folder" in result.stderr


@pytest.mark.usefixtures("folder")
def test_a_further_checkpoint_is_not_overwritten():
    succeed(*RUN, "--epochs", 1, "--checkpoint", "one.safetensors")
    succeed(*RUN, "--epochs", 2, "--checkpoint", "two.safetensors")
    further = Path("two.safetensors").read_bytes()
    arguments = ("--resume", "one.safetensors", "--checkpoint", "two.safetensors")
    assert "is at step 14, further than" in run(*RUN, "--epochs", 3, *arguments).stderr
    assert Path("two.safetensors").read_bytes() == further


@pytest.mark.usefixtures("folder")
@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
@pytest.mark.parametrize(
    ("number", "code", "background"),
    [(signal.SIGTERM, 143, ()), (signal.SIGINT, 130, ("--background",))],
)
def test_a_signal_ends_it_after_the_step_and_saves(number, code, background):
    arguments = map(str, (*RUN, "--epochs", 100_000, "--checkpoint", "run", *background))
    # In one thread, as the runs are that it is compared with: long sums are added up in its order.
    command = [sys.executable, "-m", "tests.helpers.one_thread", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not list(Path("run").glob("step-*")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    stopped = f"stopped by {signal.Signals(number).name} after step "
    (line,) = [line for line in errors.splitlines() if line.startswith(stopped)]
    steps = int(line.removeprefix(stopped).split()[0])
    assert line.endswith(": the same command goes on from 'run'")
    assert state("train.onnx", "run")["global_step"] == steps
    total = steps // 7 + 1
    result = succeed(*RUN, "--epochs", total, "--checkpoint", "run", *background)
    assert steps % 7 == 0 or f"goes on after step {steps}" in result.stdout
    succeed(*RUN, "--epochs", total, "--checkpoint", "whole.safetensors")
    assert_same_state(state("train.onnx", "run"), state("train.onnx", "whole.safetensors"))
    assert not list(Path("run").glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3])
def test_ctrl_c_while_it_imports_is_no_traceback(seconds):
    program = "import graphopt_command as c; print(flush=True); c.main()"
    command = [sys.executable, "-c", program, "--version"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        process.stdout.readline()
        time.sleep(0.02 + seconds)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", "stopped by SIGINT\n")


def test_the_command_outside_the_package_is_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["graphopt", "--version"])
    with pytest.raises(SystemExit) as end:
        graphopt_command.main()
    assert not end.value.code
    assert capsys.readouterr().out == f"graphopt {graphopt.__version__}\n"


@pytest.mark.usefixtures("folder")
def test_saving_by_minutes():
    minutes = ("--save-minutes", 1e-9, "--keep", 9)
    succeed(*RUN, "--epochs", 1, "--checkpoint", "run", *minutes)
    assert len(list(Path("run").iterdir())) == 7  # after each step
    succeed(*RUN, "--epochs", 1, "--checkpoint", "rare", "--save-minutes", 60)
    assert len(list(Path("rare").iterdir())) == 1
    assert "--save-minutes: got 0.0" in run(*RUN, "--epochs", 1, "--save-minutes", 0).stderr


@pytest.mark.usefixtures("folder")
def test_the_best_epoch_is_kept_also_where_the_run_was_interrupted():
    """Its mean loss is that of all steps of the epoch, whichever run took them."""
    options = ("--keep", 1, "--keep-best", "--save-every", 2)
    succeed(*RUN, "--epochs", 5, "--checkpoint", "whole", *options)
    succeed(*RUN, "--epochs", 2, "--checkpoint", "parts", *options, "--keep", 9)
    for path in sorted(Path("parts").iterdir())[-2:]:  # as if it had ended within the second epoch
        path.unlink()
    succeed(*RUN, "--epochs", 5, "--checkpoint", "parts", *options)
    whole, parts = (
        {path.name: checkpoint.read_stored(path).note for path in Path(name).iterdir()}
        for name in ("whole", "parts")
    )
    assert whole == parts
    assert any("metric" in note for note in whole.values())
    assert "--keep-best: needs a folder" in run(*RUN, "--epochs", 1, "--keep-best").stderr


@pytest.mark.usefixtures("folder")
def test_static_batch_leaves_out_the_smaller_last_one():
    onnx.save(digits_cnn.build(batch=30), "static.onnx")
    succeed("build", "static.onnx", "--loss", "cross_entropy", "-o", "train.onnx")
    train = ("train", "train.onnx", "--data", "digits.npz", "--epochs", 2)
    result = succeed(*train, "--checkpoint", "state.safetensors")
    assert "each epoch leaves out 10 samples: the graph takes 30 at a time" in result.stdout
    assert state("train.onnx", "state.safetensors")["global_step"] == 2 * 3

    assert "the batch size of the graph is fixed to 30" in run(*train, "--batch-size", 20).stderr
    onnx.save(digits_cnn.build(batch=101), "static.onnx")
    succeed("build", "static.onnx", "--loss", "cross_entropy", "-o", "train.onnx")
    assert "has 100 samples, and 'train.onnx' takes 101 at a time" in run(*train).stderr


@pytest.mark.usefixtures("folder")
def test_training_is_kept_beside_the_graph_by_default():
    result = succeed("train", "train.onnx", "--data", "digits.npz", "--epochs", 1)
    assert "checkpoint: train.safetensors" in result.stdout
    succeed("export", "train.onnx", "--checkpoint", "train.safetensors", "-o", "model.onnx")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("data", [(), ("--data", "digits.npz")], ids=["random", "data"])
def test_profile_prints_tables_and_writes_json(data):
    before = Path("train.onnx").read_bytes()
    result = succeed(
        *("profile", "train.onnx", *data, "--batch-size", 8, "--steps", 2, "--top", 3),
        *("--threads", 1, "--no-kernels", "--json", "profile.json"),
    )
    assert Path("train.onnx").read_bytes() == before
    assert all(len(line) <= 100 for line in result.stdout.splitlines())
    words = result.stdout.split()
    for word in ("forward", "loss", "backward", "update", "runtime", "python", "bucket0", "shared"):
        assert word in words, word
    assert result.stdout.endswith("profile: profile.json\n")
    document = json.loads(Path("profile.json").read_text())
    assert (document["steps"], document["threads"], document["kernels"]) == (2, 1, [])
    printed = [line.split() for line in result.stdout.splitlines()]
    for stage in document["stages"]:
        row = [stage["name"], *([str(stage["nodes"])] if stage["nodes"] else [])]
        row += [f"{stage['milliseconds']:.3f}", f"{stage['share']:.1%}"]
        assert (row in printed) == (stage["name"] not in ("other", "profiler"))
    header = next(index for index, row in enumerate(printed) if row[:2] == ["node", "operator"])
    rows = [row[0] for row in printed[header:] if row[2:3] in (["forward"], ["backward"])]
    assert rows == [node["name"] for node in passes(document)[:3]]


def passes(document):
    return [node for node in document["nodes"] if node["stage"] in ("forward", "backward")]


@pytest.mark.usefixtures("folder")
def test_profile_of_open_dimensions_and_many_buckets():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    m (float[N,L,3] x) => (float[N,L,2] y) { h = MatMul (x, a) y = MatMul (h, b) }"""
    model = onnx.parser.parse_model(text)
    for name, shape in {"a": (3, 4), "b": (4, 2)}.items():
        tensor = numpy_helper.from_array(np.ones(shape, "f"), name)
        model.graph.initializer.append(tensor)
    onnx.save(model, "open.onnx")
    build = ("build", "open.onnx", "--loss", "mse", "--layout", "separate")
    succeed(*build, "-o", "separate.onnx")
    arguments = ("profile", "separate.onnx", "--steps", 1, "--top", 1)
    assert "--dim L=SIZE" in run(*arguments).stderr
    result = succeed(*arguments, "--dim", "L=5")
    assert "1 more" in result.stdout


BUILD = ("build", "forward.onnx", "--loss", "cross_entropy", "-o", "out.onnx")
TRAIN = ("train", "train.onnx", "--epochs", "1")
PROFILE = ("profile", "train.onnx", "--steps", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "absent.onnx", *BUILD[2:]), "'absent.onnx'"),
        (("build", "digits.npz", *BUILD[2:]), "'digits.npz' is not an ONNX model"),
        (("build", "forward.onnx", "--loss", "hinge", "-o", "out.onnx"), "'hinge'"),
        ((*BUILD[:-1], "absent/out.onnx"), "'absent'"),
        ((*BUILD, "--learning-rate", "-1"), "learning_rate"),
        ((*BUILD, "--loss-scale", "big"), "--loss-scale: got 'big'"),
        ((*BUILD, "--loss-scale", "0"), "loss_scale: got 0.0"),
        ((*BUILD, "--clip-norm", "1", "--clip-value", "1"), "clip_value: got 1.0 beside"),
        ((*BUILD, "--clip-norm-per", "group"), "clip_norm_per: got 'group'"),
        ((*BUILD, "--freeze", "conv3.*"), "'conv3.*' matches no parameter"),
        ((*BUILD, "--freeze", "*"), "freeze: got patterns of all parameters"),
        ((*BUILD, "--loss-output", "probabilities"), "'probabilities'"),
        ((*TRAIN, "--data", "absent.npz"), "'absent.npz'"),
        ((*TRAIN, "--data", "forward.onnx"), "'forward.onnx' is not an .npz file"),
        ((*TRAIN, "--data", "no_labels.npz"), "'labels' is missing"),
        ((*TRAIN, "--data", "scalar.npz"), "'labels' is a scalar"),
        ((*TRAIN, "--data", "uneven.npz"), "the same number of samples"),
        ((*TRAIN, "--data", "empty.npz"), "the same number of samples"),
        ((*TRAIN, "--data", "nothing.npz"), "the same number of samples"),
        ((*TRAIN, "--data", "float64.npz"), "float64"),
        ((*TRAIN, "--data", "pickled.npz"), "'pickled.npz'"),
        ((*TRAIN, "--data", "label_10.npz"), "got label 10"),
        ((*TRAIN, "--data", "digits.npz", "--resume", "absent"), "'absent'"),
        ((*TRAIN, "--data", "digits.npz", "--checkpoint", "absent/state"), "'absent'"),
        ((*TRAIN, "--data", "digits.npz", "--export", "absent/model.onnx"), "'absent'"),
        (("train", "forward.onnx", *TRAIN[2:], "--data", "digits.npz"), "not a training graph"),
        (("train", "update.onnx", *TRAIN[2:], "--data", "digits.npz"), "update graph"),
        (("export", "train.onnx", "--checkpoint", "digits.npz", "-o", "out.onnx"), "checkpoint"),
        (("export", "train.onnx", "--checkpoint", "absent", "-o", "out.onnx"), "'absent'"),
        (("profile", "absent.onnx"), "'absent.onnx'"),
        (("profile", "forward.onnx"), "not a training graph"),
        ((*PROFILE, "--data", "absent.npz"), "'absent.npz'"),
        ((*PROFILE, "--data", "no_labels.npz"), "'labels' is missing"),
        ((*PROFILE, "--data", "label_10.npz"), "got label 10"),
        ((*PROFILE, "--data", "digits.npz", "--batch-size", "101"), "has 100 samples"),
        ((*PROFILE, "--dim", "length"), "expected NAME=SIZE"),
        ((*PROFILE, "--dim", "length=3"), "'length' is not an open dimension"),
        ((*PROFILE, "--provider", "NoExecutionProvider"), "'NoExecutionProvider'"),
        ((*PROFILE, "--json", "absent/profile.json"), "'absent'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, arguments, message):
    samples = load("digits.npz")
    x, labels = samples["x"], samples["labels"]
    np.savez("no_labels.npz", x=x)
    np.savez("scalar.npz", x=x, labels=labels[0])
    np.savez("uneven.npz", x=x, labels=labels[1:])
    np.savez("empty.npz", x=x[:0], labels=labels[:0])
    np.savez("nothing.npz")
    np.savez("float64.npz", x=x.astype(np.float64), labels=labels)
    np.savez("pickled.npz", x=x, labels=labels.astype(object))
    np.savez("label_10.npz", x=x, labels=labels + 1)
    optimizer = graphopt.RMSProp(graphopt.parameters("forward.onnx"))
    graphopt.update_graph(optimizer).save("update.onnx")
    before = sorted(folder.iterdir())

    result = run(*arguments)

    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("epoch ")]
    assert line.startswith("error: ")
    assert message in line
    assert sorted(folder.iterdir()) == before


@pytest.mark.usefixtures("folder")
def test_unexpected_errors_are_not_swallowed(monkeypatch):
    monkeypatch.setattr(graphopt, "parameters", lambda _: 1 / 0)
    assert isinstance(run(*BUILD).exception, ZeroDivisionError)
