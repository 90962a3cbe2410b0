"""Large values that stay in their files: here all are large."""

import copy
import gc
import os
import pickle
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt import RMSProp, checkpoint, large_models, mapped_values
from graphopt.examples import digits_cnn
from graphopt.graphs import proto_initializers
from graphopt.soundness import leaving
from tests.helpers import build_peak
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


@pytest.fixture
def where(monkeypatch):
    """Let values of any size be left in memory, or none."""

    def choose(place):
        least = {"aside": 1, "in the model": 2**40}[place]
        monkeypatch.setattr(mapped_values, "LEAST_IN_MEMORY", least)
        monkeypatch.setattr(large_models, "_WHOLE", least)

    return choose


@pytest.mark.parametrize("names", [("*",), ("conv*",)], ids=["all", "most are frozen"])
def test_values_that_are_there_once_are_those_of_the_model(names, where, tmp_path):
    where("in the model")
    whole = graph_of(digits_cnn.build(), names)
    assert left(whole.lean) == []
    whole.save(tmp_path / "whole.onnx")
    where("aside")
    graph = graph_of(digits_cnn.build(), names)
    assert {"conv1.weight", "dense1.weight"} <= {*left(graph.lean)}
    gc.collect()
    graph.save(tmp_path / "aside.onnx")
    assert (tmp_path / "aside.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    sessions = [graphopt.Session(g) for g in (whole, graph)]
    assert sessions[0].step(batch())["loss"] == sessions[1].step(batch())["loss"]
    assert left(graph.lean)
    for values in ({}, sessions[0].state):
        assert graph.forward(values) == whole.forward(values)
    assert graph.model == whole.model
    assert left(graph.model) == []


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda graph: pickle.loads(pickle.dumps(graph))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_has_all_values(copied, where):
    where("aside")
    graph = graph_of(digits_cnn.build(), ["conv*"])
    other = copied(graph)
    expected = graph.model
    del graph
    assert left(other.lean) == []
    assert other.model == expected
    starts = {value.input: value.initial for value in other.carried}
    assert np.array_equal(
        starts["conv1.weight"], numpy_helper.to_array(digits_cnn.build().graph.initializer[0])
    )


def test_frozen_values_stay_as_long_as_a_graph_that_has_them(where):
    where("aside")
    bare = graph_of(digits_cnn.build(), ["conv*"]).without_initial_values()
    gc.collect()
    model = digits_cnn.build().graph
    frozen = {t.name: numpy_helper.to_array(t) for t in model.initializer if "dense" in t.name}
    assert {*left(bare.lean)} == frozen.keys()
    for tensor in bare.model.graph.initializer:
        if tensor.name in frozen:
            assert np.array_equal(numpy_helper.to_array(tensor), frozen[tensor.name])


def test_gradients_of_ones_own_with_values_that_are_there_once(where, tmp_path):
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        own (float[3] x) => (float[3] y, float[3] g)
        <float[3] w = {1, 2, 3}, float[3] c = {4, 5, 6}>
        { s = Mul (x, c) y = Mul (w, s) g = Mul (s, s) }""")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    for place in ("in the model", "aside"):
        where(place)
        optimizer = RMSProp(graphopt.parameters(model).matching("w"))
        graph = graphopt.training_graph(model, None, optimizer, gradients={"w": "g"})
        assert left(graph.lean) == (["c", "w"] if place == "aside" else [])
        graph.save(tmp_path / f"{place}.onnx")
    files = contents(tmp_path)
    assert files["aside.onnx"] == files["in the model.onnx"]


def test_what_lies_in_memory_as_numpy_has_it_is_left_there(where):
    where("aside")
    kinds = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT64", "INT8", "BOOL", "FLOAT8E4M3FN")
    tensors = [
        helper.make_tensor(kind, getattr(TensorProto, kind), [2, 2], bytes(4 * size), raw=True)
        for kind, size in zip(kinds, (4, 2, 2, 8, 8, 1, 1, 1), strict=True)
    ]
    for index, tensor in enumerate(tensors):
        tensor.raw_data = bytes([0, 1, 1, 0] * (len(tensor.raw_data) // 4))
        tensor.doc_string = f"number {index}"
        tensor.metadata_props.add(key="note", value=str(index))
    others = [
        helper.make_tensor("INT4", TensorProto.INT4, [2, 2], bytes(2), raw=True),
        helper.make_tensor("numbers", TensorProto.FLOAT, [2], [1.0, 2.0]),
        helper.make_tensor("text", TensorProto.STRING, [1], [b"a"]),
        helper.make_tensor("none", TensorProto.FLOAT, [0], b"", raw=True),
    ]
    graph = helper.make_graph([], "values", [], [], [*tensors, *others])
    model = helper.make_model(graph)
    aside, held = large_models.with_values_aside(model)
    assert left(aside) == list(kinds)
    assert sum(array.nbytes for array in held) == sum(len(t.raw_data) for t in tensors)
    for tensor, other in zip(tensors, aside.graph.initializer, strict=False):
        array, expected = mapped_values.array_of(other), numpy_helper.to_array(tensor)
        assert (array.shape, array.tobytes()) == (expected.shape, tensor.raw_data)
        assert array.dtype == helper.tensor_dtype_to_np_dtype(tensor.data_type)
    assert mapped_values.loaded(aside) == model


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux says it")  # noqa: PTH110
@pytest.mark.parametrize(("how", "most"), [("path", 2.5), ("proto", 1.5)])
def test_building_has_each_value_once(how, most, tmp_path):
    """Reading has the file beside the model for a moment; all later steps share the values."""
    path = tmp_path / "model.onnx"
    build_peak.write(path)
    assert path.stat().st_size < leaving.LEAST
    command = [sys.executable, "-m", "tests.helpers.build_peak", str(path), how]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert int(done.stdout) < most * build_peak.WEIGHTS + 20 * 2**20


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
