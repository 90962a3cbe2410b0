"""The C++ example trains as `graphopt.Session` does, from what is saved beside the graph."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

import graphopt
from graphopt.examples import digits, digits_cnn
from tests.helpers.folders import ROOT

pytestmark = pytest.mark.any_runtime

CPP = ROOT / "graphopt" / "examples" / "cpp"
STEPS, BATCH = 20, 32


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The example, compiled against the library that Python's package has."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    found = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if compiler is None or not found:
        pytest.skip("NOT RUN: there is no C++ compiler, or no libonnxruntime.so in the package")
    built = tmp_path_factory.mktemp("cpp") / "digits"
    library = built.with_name("libonnxruntime.so.1")  # what the library calls itself
    library.symlink_to(found[0])
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", CPP / "digits.cpp", library]
    subprocess.run([*command, f"-Wl,-rpath,{library.parent}", "-o", built], check=True)
    return built


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a graph, what it starts from, and data; the current one."""
    monkeypatch.chdir(tmp_path)
    build()
    train = digits.load().train
    save_file({"x": train.x, "labels": train.labels}, "digits.safetensors")
    return tmp_path


def build(layout="auto"):
    model = digits_cnn.build()
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model),
        learning_rate=graphopt.schedules.CosineDecayLR(0.0, 0.002, 100),
        momentum=0.9,
        average=0.9,
        loss_scale=graphopt.DynamicLossScale(8.0, growth_interval=7),
    )
    graph = graphopt.training_graph(model, "cross_entropy", optimizer, layout=layout)
    graph.save("train.onnx", start="safetensors")


def trained(session, first, count):
    """The losses of some steps in Python."""
    train = digits.load().train
    losses = []
    for step in range(first, first + count):
        rows = slice(step * BATCH, (step + 1) * BATCH)
        feeds = {"x": train.x[rows], "labels": train.labels[rows]}
        losses.append(float(session.step(feeds)["loss"]))
    return losses


def run(program, start, steps, saved):
    command = [program, "train.onnx", start, "digits.safetensors", str(steps), saved]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("layout", ["auto", "buckets", "separate"])
@pytest.mark.usefixtures("folder")
def test_it_trains_as_a_session_does_and_each_goes_on_where_the_other_was(program, layout):
    build(layout)
    session = graphopt.Session("train.onnx", kernels=False, deterministic=True)
    done = run(program, "train.start.safetensors", STEPS, "state.safetensors")
    assert done.returncode == 0, done.stderr
    losses = [float(line) for line in done.stdout.splitlines()]
    np.testing.assert_allclose(losses, trained(session, 0, STEPS), rtol=1e-6)
    assert losses[-1] < 0.8 * losses[0]
    other = graphopt.Session("train.onnx", kernels=False, deterministic=True)
    with pytest.warns(UserWarning, match="no checksums"):
        report = other.load_checkpoint("state.safetensors")
    assert (report.kept, report.ignored) == ((), ())
    for name, value in session.state.items():
        np.testing.assert_allclose(other.state[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    # In C++ from there on, with the samples from the beginning, as this session does.
    done = run(program, "state.safetensors", 3, "more.safetensors")
    losses = [float(line) for line in done.stdout.splitlines()]
    np.testing.assert_allclose(losses, trained(other, 0, 3), rtol=1e-6)


@pytest.mark.quick
@pytest.mark.usefixtures("folder")
def test_what_is_saved_beside_the_graph_is_what_a_session_starts_from():
    session = graphopt.Session("train.onnx")
    before = session.state
    carried = {value.input: value for value in session.graph.carried}
    start = load_file("train.start.safetensors")
    assert {name: (a.shape, a.dtype.name) for name, a in start.items()} == {
        name: (value.shape, value.dtype) for name, value in carried.items()
    }
    trained(session, 0, 2)
    with pytest.warns(UserWarning, match="no checksums"):
        session.load_checkpoint("train.start.safetensors")
    for name, value in before.items():
        np.testing.assert_array_equal(session.state[name], value, err_msg=name)


@pytest.mark.usefixtures("folder")
def test_mistakes(program):
    for start, message in (
        ("absent", "there is no file 'absent'"),
        ("train.onnx", "'train.onnx' is no safetensors file, or damaged"),
        ("digits.safetensors", "'digits.safetensors' has no '"),
    ):
        done = run(program, start, 1, "state.safetensors")
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr
    graph = graphopt.update_graph(graphopt.RMSProp([graphopt.Parameter("w", (3,))]))
    with pytest.raises(ValueError, match="start: the graph has no value that 'w' starts from"):
        graph.save("update.onnx", start="safetensors")
    with pytest.raises(ValueError, match="start: got 'json'"):
        graph.save("update.onnx", start="json")
    assert not Path("update.onnx").exists()
