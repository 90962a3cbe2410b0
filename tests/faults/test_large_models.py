"""Models that one file cannot hold, written with their values beside: here 45 kB are too much."""

import errno
import os

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import RMSProp, large_models
from graphopt.examples import digits_cnn
from tests.helpers.faults import failing

pytestmark = pytest.mark.any_runtime


@pytest.fixture
def small_files(monkeypatch):
    """Let a file hold less than 45 kB."""
    monkeypatch.setattr(large_models, "MOST", 45_000)
    monkeypatch.setattr("graphopt._runtime_session.MOST", 45_000)


@pytest.fixture(scope="module")
def cnn():
    return digits_cnn.build()


def graph_of(model, names=None):
    params = graphopt.parameters(model)
    optimizer = RMSProp(params if names is None else params.matching(*names), momentum=0.9)
    return graphopt.training_graph(model, "cross_entropy", optimizer)


def batch(step):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(8, 1, 8, 8)).astype(np.float32)
    return {"x": x, "labels": rng.integers(0, 10, 8)}


def same(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def test_a_large_model_is_mapped_and_not_copied(cnn):
    seen = []

    def move(tensor):
        seen.append(tensor.name)
        return tensor

    assert large_models.mapped(cnn, move) == cnn
    assert seen == [t.name for t in cnn.graph.initializer if len(t.raw_data) >= 1024]
    training = graph_of(cnn).model
    assert large_models.mapped(training, move) == training
    assert large_models.size_of(training) == training.ByteSize()


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("names", [None, ["conv*"]], ids=["all", "most are frozen"])
def test_the_way_through_files(names, cnn, tmp_path, monkeypatch):
    graph = graph_of(cnn, names)
    whole = graphopt.Session(graph)
    path = tmp_path / "train.onnx"
    graph.save(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.onnx", "train.onnx.data"]
    assert path.stat().st_size < 45_000 < path.with_suffix(".onnx.data").stat().st_size
    monkeypatch.chdir(tmp_path.parent)
    loaded = graphopt.load(path)
    assert loaded.model == graph.model
    assert graphopt.inspect(path).parameters == graphopt.inspect(graph).parameters
    session = graphopt.Session(path)
    for step in range(3):
        losses = [one.step(batch(step))["loss"] for one in (whole, session)]
        assert losses[0] == losses[1]
    assert same(whole.state, session.state)
    session.save_checkpoint(tmp_path / "c.safetensors")
    again = graphopt.Session(path)
    again.load_checkpoint(tmp_path / "c.safetensors")
    assert same(again.state, session.state)
    session.export(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").is_file()
    trained = onnx.load(tmp_path / "model.onnx")  # as any program reads it
    for tensor in trained.graph.initializer:
        if tensor.name in session.state:
            np.testing.assert_array_equal(
                numpy_helper.to_array(tensor), session.state[tensor.name], tensor.name
            )
    assert graphopt.parameters(tmp_path / "model.onnx") == graphopt.parameters(cnn)


@pytest.mark.usefixtures("small_files")
def test_its_values_are_not_overwritten(cnn, tmp_path):
    graph_of(cnn).save(tmp_path / "train.onnx")
    session = graphopt.Session(tmp_path / "train.onnx")
    for call in (session.save_checkpoint, session.export):
        with pytest.raises(ValueError, match="which is read; write to another file"):
            call(tmp_path / "train.onnx.data")


@pytest.mark.usefixtures("small_files")
def test_both_files_or_none(cnn, tmp_path):
    path = tmp_path / "train.onnx"
    graph = graph_of(cnn)
    graph.save(path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    other = graph_of(digits_cnn.build(seed=1))
    with failing(None) as operations:
        other.save(path)
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert before.keys() == after.keys()
    assert before["train.onnx.data"] != after["train.onnx.data"]
    refused = 0
    for at in range(len(operations)):
        graph.save(path)
        try:
            with failing(at):
                other.save(path)
        except OSError as error:
            refused += 1
            assert error.errno in (errno.EIO, errno.ENOSPC)  # noqa: PT017 - may also be done
        found = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        assert found in (before, after), at
    assert refused > 5


@pytest.mark.usefixtures("small_files")
def test_a_graph_that_is_too_large_without_its_values(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> m (float[N] x) => (float[N] y) { y = Neg (x) }'
    )
    model.doc_string = "x" * 200_000
    with pytest.raises(ValueError, match=r"has .* or more without its initializers"):
        large_models.save_model(model, tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - hidden ones too
