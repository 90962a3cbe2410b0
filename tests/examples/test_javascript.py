"""The JavaScript examples train as `graphopt.Session` does: in Node, and in Chromium."""

import json
import queue
import re
import shutil
import subprocess
from collections import namedtuple
from functools import cache
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

import graphopt
from graphopt.command_line import javascript
from graphopt.examples import digits
from models.zoo import ZOO
from tests.helpers import chromium, everything as everything_on, node, pages
from tests.helpers.folders import JAVASCRIPT

pytestmark = pytest.mark.any_runtime

STEPS = 24
EPOCHS = javascript.EPOCHS
EPOCHS_IN_NODE = 2  # the pages train to the end
RUNTIMES = ["onnxruntime-node", "onnxruntime-web"]
# Each runtime adds in an order of its own. The example's learning rate keeps that small: an initial
# change of 1e-7 of each parameter is one of 1e-5 after its 450 steps.
AFTER_STEPS = 1e-5
AFTER_TRAINING = 1e-3
ACCURACY = 0.005

LINEAR_FLOAT16 = """<ir_version: 8, opset_import: ["": 17]>
linear (float16[N, 2] x) => (float16[N, 1] y) <float16[2, 1] w = {1, 2}> { y = MatMul(x, w) }"""

Trained = namedtuple("Trained", "state accuracy losses")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The examples with their packages, and what they train."""
    packages = node.packages()
    folder = tmp_path_factory.mktemp("javascript")
    for file in [*JAVASCRIPT.iterdir(), *(Path(__file__).parent / "javascript").iterdir()]:
        if file.is_file():
            shutil.copy(file, folder / file.name)
    (folder / "node_modules").symlink_to(packages)
    javascript.main(folder / "build")
    return folder


@pytest.fixture(scope="module")
def in_python(example):
    """What a session makes of the same batches in the same order, in so many epochs."""

    @cache
    def after(epochs):
        session, losses = trained(example, epochs * len(batches()))
        session.export(example / f"python{epochs}.onnx")
        return Trained(session.state, accuracy(example / f"python{epochs}.onnx"), losses)

    return after


@cache
def batches():
    train, size = digits.load().train, javascript.BATCH_SIZE
    return [
        {"x": train.x[start : start + size], "labels": train.labels[start : start + size]}
        for start in range(0, len(train.labels), size)
    ]


def cycled(steps):
    return [batches()[step % len(batches())] for step in range(steps)]


@cache
def trained(example, steps):
    """A session after some steps, and their losses."""
    session = graphopt.Session(example / "build" / "train.onnx")
    fed = batches()
    return session, [float(session.step(fed[step % len(fed)])["loss"]) for step in range(steps)]


def accuracy(model):
    test = digits.load().test
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"x": test.x})
    return np.mean(logits.argmax(axis=1) == test.labels)


def run(folder, *arguments):
    done = subprocess.run(
        [node.executable(), "--liftoff-only", *map(str, arguments)],  # optimizing takes longer
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


ALL_STEPS = """
const [node, runtime, ...folders] = process.argv;
for (const folder of folders) {
  process.argv = [node, "steps.mjs", runtime, folder];
  await import(`./steps.mjs?${folder}`);
}"""


def prepared(folder, graph, fed):
    """A folder with a graph and what it is fed."""
    (folder / "feeds").mkdir(parents=True)
    shutil.copy(graph, folder / "train.onnx")
    for index, batch in enumerate(fed):
        contiguous = {name: np.ascontiguousarray(array) for name, array in batch.items()}
        save_file(contiguous, folder / "feeds" / f"{index:03}.safetensors")
    return folder


def steps_in_node(example, runtime, *folders):
    """The losses of steps in Node of each folder, whose state is then in its end.safetensors."""
    said = run(example, "--input-type=module", "--eval", ALL_STEPS, runtime, *folders)
    losses = [json.loads(line) for line in said.splitlines()]
    assert len(losses) == len(folders)
    return losses


def assert_close(state, expected, tolerance):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert state[name].shape == value.shape
        np.testing.assert_allclose(state[name], value, rtol=0, atol=tolerance, err_msg=name)


def assert_learned(example, log, checkpoint, expected, epochs):
    """What an example says and writes is what Python reached, and Python can export it."""
    lines = re.findall(r"loss +(\S+) +test accuracy +(\S+) %", log)
    means = np.reshape(expected.losses, (epochs, -1)).mean(axis=1)
    np.testing.assert_allclose([float(loss) for loss, _ in lines], means, rtol=0, atol=1e-3)
    assert abs(float(lines[-1][1]) / 100 - expected.accuracy) <= ACCURACY

    assert_close(load_file(checkpoint), expected.state, AFTER_TRAINING)
    session = graphopt.Session(example / "build" / "train.onnx")
    session.load_checkpoint(checkpoint)
    session.export(checkpoint.with_name("trained.onnx"))
    exported = accuracy(checkpoint.with_name("trained.onnx"))
    assert exported == pytest.approx(float(lines[-1][1]) / 100, abs=1e-4)


# What is trained in Node, and how far its state may be from the session's: for each runtime one
# process, because starting it takes longer than the steps.


def from_the_initial_values_and_from_a_checkpoint(example, folder):
    session, here = trained(example, STEPS)
    half, _ = trained(example, STEPS // 2)
    graph, fed = example / "build" / "train.onnx", cycled(STEPS)
    yield prepared(folder / "whole", graph, fed), here, session.state, AFTER_STEPS
    rest = prepared(folder / "rest", graph, fed[STEPS // 2 :])
    half.save_checkpoint(rest / "start.safetensors")
    yield rest, here[STEPS // 2 :], session.state, AFTER_STEPS


def network(name, layout, folder, provider="CPUExecutionProvider"):
    entry = ZOO[name]
    model = entry.build()
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model), learning_rate=0.002, momentum=0.9, centered=True
    )
    graph = folder / f"{name}.onnx"
    graphopt.training_graph(model, entry.loss, optimizer, layout=layout, provider=provider).save(
        graph
    )
    rng = np.random.default_rng(0)
    fed = [entry.feeds(rng, 4) for _ in range(3)]
    session = graphopt.Session(graph)
    here = [float(session.step(batch)["loss"]) for batch in fed]
    return prepared(folder / name, graph, fed), here, session.state, 1e-4


def everything(folder):
    """Dropout, sums, averages, clipping, and a loss scale that overflows in the first steps."""
    graph = everything_on.graph_of(everything_on.network(), scale=2.0**126)
    graph.save(folder / "everything.onnx")
    fed = [everything_on.feeds_of(step, bad=False) for step in range(STEPS)]
    session = graphopt.Session(graph)
    here = [float(session.step(feeds)["loss"]) for feeds in fed]
    assert session.state["skipped_steps"] > 0
    assert session.global_step > 3
    there = prepared(folder / "everything", folder / "everything.onnx", fed)
    return there, here, session.state, AFTER_STEPS


def float16(folder):
    model = onnx.parser.parse_model(LINEAR_FLOAT16)
    optimizer = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.1, momentum=0.9)
    graph = folder / "float16.onnx"
    graphopt.training_graph(model, "mse", optimizer).save(graph)
    rng = np.random.default_rng(0)
    fed = [
        {"x": rng.normal(size=(8, 2)).astype(np.float16), "labels": np.ones((8, 1), np.float16)}
        for _ in range(3)
    ]
    session = graphopt.Session(graph)
    here = [float(session.step(batch)["loss"]) for batch in fed]
    assert session.state["w"].dtype == np.float16
    assert not np.array_equal(session.state["w"], [[1], [2]])
    return prepared(folder / "float16", graph, fed), here, session.state, 2e-3


# In mobilenet_v3, moving statistics are carried, too. float16 is not for onnxruntime-node: in
# Node 24, its 1.30 cannot read a Float16Array.
OTHERS = {
    "onnxruntime-node": lambda folder: [
        network("mobilenet_v3", "auto", folder),
        network("transformer", "separate", folder),
        everything(folder),
    ],
    "onnxruntime-web": lambda folder: [
        network("transformer", "buckets", folder),
        network("mlp_mse", "separate", folder),
        float16(folder),
        everything(folder),
    ],
}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_steps_in_node(example, runtime, tmp_path):
    digits_network = from_the_initial_values_and_from_a_checkpoint(example, tmp_path)
    every = [*digits_network, *OTHERS[runtime](tmp_path)]
    there = steps_in_node(example, runtime, *(folder for folder, *_ in every))
    for losses, (folder, here, state, tolerance) in zip(there, every, strict=True):
        bound = 2e-3 if folder.name == "float16" else 1e-5
        np.testing.assert_allclose(losses, here, rtol=0, atol=bound, err_msg=folder.name)
        assert_close(load_file(folder / "end.safetensors"), state, tolerance)


def test_on_device_steps_in_node_with_a_pause(example, tmp_path):
    session, here = trained(example, STEPS)
    there = json.loads(run(example, "on_device_steps.mjs", tmp_path, STEPS))
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5)
    assert_close(load_file(tmp_path / "end.safetensors"), session.state, AFTER_STEPS)


@pytest.mark.parametrize("runtime", [*RUNTIMES, "on-device"])
def test_example_in_node(example, in_python, runtime, tmp_path):
    folder = tmp_path / "example"  # beside others that write the same checkpoint
    shutil.copytree(example, folder, symlinks=True)
    log = run(folder, "node.mjs", EPOCHS_IN_NODE, runtime)
    expected = in_python(EPOCHS_IN_NODE)
    checkpoint = folder / "build" / "checkpoint.safetensors"
    assert_learned(folder, log, checkpoint, expected, EPOCHS_IN_NODE)


def in_chromium(example, page, epochs, folder, options=()):
    """What a page says, what happened on its pad, and the checkpoint that it offers."""
    home = folder / "home"
    home.mkdir()
    with (
        pages.served(example) as (address, sent),
        chromium.opened(f"{address}/harness.html?page={page}", home, options),
    ):
        try:
            offered, seen = (sent.get(timeout=240)[1] for _ in range(2))
        except queue.Empty:
            pytest.fail((home / "log").read_text()[-4000:])
    seen = json.loads(seen)
    assert seen["points"] == {"loss": epochs, "accuracy": epochs}, seen["log"]
    assert seen["log"].endswith("trained\n")
    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.write_bytes(offered)
    return seen["log"], seen["drawn"], checkpoint


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", ["index.html", "on_device.html"])
def test_page_in_chromium(example, in_python, page, tmp_path):
    log, _, checkpoint = in_chromium(example, page, EPOCHS, tmp_path)
    assert_learned(example, log, checkpoint, in_python(EPOCHS), EPOCHS)
    assert in_python(EPOCHS).accuracy > 0.96


@pytest.mark.exhaustive
def test_page_on_a_gpu_in_chromium(example, in_python, tmp_path):
    """On a GPU that Chromium computes itself."""
    log, drawn, checkpoint = in_chromium(
        example, "webgpu.html%3Fepochs=1", 1, tmp_path, chromium.SOFTWARE_GPU
    )
    assert drawn["provider"] == "on the GPU (google swiftshader)"
    assert re.fullmatch(r"This is a \d, to \d+ %\.", drawn["answer"])
    assert_learned(example, log, checkpoint, in_python(1), 1)


@pytest.mark.exhaustive
def test_steps_on_a_gpu(example, tmp_path):
    """What gives floating-point numbers runs there, all of it."""
    folder, here, state, _ = network("transformer", "auto", tmp_path, "WebGpuExecutionProvider")
    shutil.copytree(folder, example / "transformer", dirs_exist_ok=True)
    page = f"gpu_steps.html?folder=transformer&steps={len(here)}"
    home = tmp_path / "home"
    home.mkdir()
    with (
        pages.served(example) as (address, sent),
        chromium.opened(f"{address}/{page}", home, chromium.SOFTWARE_GPU),
    ):
        offered, losses = (sent.get(timeout=240)[1] for _ in range(2))
    np.testing.assert_allclose(json.loads(losses), here, rtol=1e-5)
    (tmp_path / "end.safetensors").write_bytes(offered)
    assert_close(load_file(tmp_path / "end.safetensors"), state, 1e-4)

    model = onnx.shape_inference.infer_shapes(onnx.load(folder / "train.onnx"), data_prop=True)
    dtypes = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    floats = {
        node.name
        for node in model.graph.node
        if any(dtypes.get(name) == onnx.TensorProto.FLOAT for name in node.output)
    }
    on_cpu, on_gpu = placed((home / "log").read_text(errors="replace"))
    assert on_cpu & floats == set()
    assert len(on_gpu & floats) > 100


def placed(log):
    """The names of the nodes that the log says to run on the CPU, and on the GPU."""
    names, provider = {"CPUExecutionProvider": set(), "WebGpuExecutionProvider": set()}, None
    for line in log.splitlines():
        if found := re.search(r"placed on \[(\w+)\]", line):
            provider = found[1]
        elif found := re.search(r"VerifyEachNodeIsAssignedToAnEp\] +\w+ \(([^)]+)\)", line):
            names[provider].add(found[1])
    return names.values()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_refusals(example, runtime):
    seen = json.loads(run(example, "refusals.mjs", runtime))
    assert "no training graph" in seen["forward"]
    assert "no training graph" in seen["empty"]
    assert "damaged" in seen["truncated"]
    assert "labels" in seen["missing"]
    assert seen["unequal"] != "accepted"
    assert "running already" in seen["overlapping"]
    assert seen["steps"] == 2  # the first one, and one of the two that overlapped
    assert seen["repeatable"]
    assert seen["undisturbed"]
