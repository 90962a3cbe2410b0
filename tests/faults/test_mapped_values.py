"""Large values that stay in their files: here all are large."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import graphopt
from graphopt import RMSProp, checkpoint, large_models, mapped_values
from graphopt.examples import digits_cnn
from graphopt.graphs import proto_initializers
from tests.helpers.faults import contents
from tools.faults import large

pytestmark = pytest.mark.any_runtime


@pytest.fixture
def all_are_large(monkeypatch):
    """Leave every value of a model in its file."""
    monkeypatch.setattr(mapped_values, "LEAST", 1)
    monkeypatch.setattr("graphopt.soundness.file.LEAST", 1)
    monkeypatch.setattr(large_models, "_WHOLE", 0)


@pytest.fixture(params=["one file", "beside"])
def path(request, tmp_path):
    """The file of a model, which has its values in it or beside it."""
    beside = {"save_as_external_data": True, "location": "values", "size_threshold": 0}
    options = beside if request.param == "beside" else {}
    onnx.save(digits_cnn.build(), tmp_path / "model.onnx", **options)
    return tmp_path / "model.onnx"


def graph_of(model, names=("*",)):
    params = graphopt.parameters(model).matching(*names)
    optimizer = RMSProp(params, momentum=0.9)
    return graphopt.training_graph(model, "cross_entropy", optimizer, layout="separate")


def left(model):
    return [t.name for t in proto_initializers(model) if mapped_values.is_left(t)]


def batch():
    rng = np.random.default_rng(0)
    return {"x": rng.normal(size=(4, 1, 8, 8)).astype("f"), "labels": rng.integers(0, 10, 4)}


@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("names", [("*",), ("conv*",)], ids=["all", "most are frozen"])
def test_the_same_graph_is_built_written_and_trained(names, path, tmp_path):
    whole = graph_of(digits_cnn.build(), names)
    graph = graph_of(path, names)
    assert "dense1.weight" in left(graph.lean)
    graph.save(tmp_path / "train.onnx")
    loaded = graphopt.load(tmp_path / "train.onnx")
    assert left(loaded.lean)
    sessions = [graphopt.Session(g) for g in (whole, loaded)]
    losses = [session.step(batch())["loss"] for session in sessions]
    assert losses[0] == losses[1]
    for index, session in enumerate(sessions):
        session.export(tmp_path / f"{index}.onnx")
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    exported = onnx.load(tmp_path / "1.onnx")
    onnx.checker.check_model(exported, full_check=True)
    assert left(exported) == []
    for one in (graph, loaded):
        assert one.model == whole.model
        assert left(one.model) == []
        assert one.forward({}) == whole.forward({})


@pytest.mark.usefixtures("all_are_large")
def test_what_is_written_is_what_protobuf_writes(tmp_path):
    model = graph_of(digits_cnn.build(), ["conv*"]).model
    large_models.save_model(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == model.SerializeToString()
    assert large_models.size_of(model) == model.ByteSize()


@pytest.mark.usefixtures("all_are_large")
def test_a_file_that_is_written_to_is_refused(path, tmp_path):
    graph = graph_of(path)
    values = tmp_path / ("values" if (tmp_path / "values").exists() else "model.onnx")
    before = values.stat()
    with values.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\0" * 8)
    os.utime(values, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    for call in (lambda: graph.save(tmp_path / "t.onnx"), lambda: graph.model):
        with pytest.raises(ValueError, match=f"'{values}' has been written to since"):
            call()
    assert not (tmp_path / "t.onnx").exists()


@pytest.mark.usefixtures("all_are_large")
def test_a_file_that_is_replaced_stays_what_it_was(path, tmp_path):
    graph, expected = graph_of(path), graph_of(digits_cnn.build()).model
    for name, content in contents(tmp_path).items():
        (tmp_path / "other").write_bytes(content[::-1])
        (tmp_path / "other").replace(tmp_path / name)
    assert graph.model == expected


@pytest.mark.usefixtures("all_are_large")
def test_a_model_from_outside_is_not_believed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(4096, "f").tobytes())
    model = digits_cnn.build()
    tensor = next(t for t in model.graph.initializer if t.name == "dense1.weight")
    size = len(tensor.raw_data)
    mapped_values.leave(tensor, secret, 0, size)
    mark = next(entry for entry in tensor.metadata_props)
    mark.value = f"{'0' * 32} {mark.value.split(' ', 1)[1]}"
    with pytest.raises(ValueError, match="which was not loaded"):
        graph_of(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="expected a file in the folder of the model"):
        graph_of(tmp_path / "model.onnx")


@pytest.mark.usefixtures("all_are_large")
def test_a_tensor_that_is_damaged_is_read_and_refused(tmp_path):
    model = digits_cnn.build()
    tensor = next(t for t in model.graph.initializer if t.name == "dense1.weight")
    tensor.raw_data = tensor.raw_data[:-4]
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"'dense1.weight' of shape .* has .* bytes, expected"):
        graphopt.parameters(tmp_path / "model.onnx")


@pytest.mark.usefixtures("all_are_large")
def test_a_checkpoint_is_looked_at_and_not_read(tmp_path):
    graph = graph_of(digits_cnn.build())
    session, other = graphopt.Session(graph), graphopt.Session(graph)
    session.step(batch())
    session.save_checkpoint(tmp_path / "c.safetensors")
    stored = checkpoint.read_stored(tmp_path / "c.safetensors", leaving=True)
    assert all(map(mapped_values.is_in_file, stored.state.values()))
    other.load_checkpoint(tmp_path / "c.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"")
    state, expected = other.state, session.state
    assert all(np.array_equal(state[name], expected[name]) for name in expected)


def test_values_that_somebody_holds():
    array = np.arange(2**19, dtype=np.float32)
    tensor = mapped_values.tensor_at(array, "w")
    assert mapped_values.is_left(tensor)
    assert mapped_values.array_of(tensor) is array
    small = mapped_values.tensor_at(array[:5], "w")
    assert numpy_helper.to_array(small).tolist() == [0, 1, 2, 3, 4]
    assert small.data_location == TensorProto.DEFAULT


_CONSTANT = 100 * 2**20  # bytes that the runtime and Python take, whatever the model
_BOUNDS = {
    "training_graph, save": (0.3, 0.0),
    "Session, 3 steps, save_checkpoint": (1.0, 1.2),  # with the gradients
    "Session, load_checkpoint": (0.0, 1.2),
    "Session, export": (0.0, 1.2),
}
"""How often the size of the weights and that of the state each may take at most."""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux says it")  # noqa: PTH110
def test_peaks(tmp_path):
    weights = large.write_model(tmp_path, 0.1)
    for phase, (of_weights, of_state) in _BOUNDS.items():
        peak, _ = large.measured(phase, tmp_path)
        most = of_weights * weights + of_state * 2 * weights + _CONSTANT
        assert peak < most, f"{phase}: {peak / weights:.2f} times the weights"
