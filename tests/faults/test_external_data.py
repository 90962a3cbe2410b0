"""Values in files beside a model: from its folder only, wherever in the model the tensor stands."""

import os
import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import AttributeProto, helper, numpy_helper

import graphopt
from graphopt import Parameter, RMSProp

pytestmark = pytest.mark.any_runtime

VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)
W = [Parameter("w", (3, 2))]


def outside(tensor, location, **entries):
    """Let a tensor have its values in a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def tensor(name="w"):
    return numpy_helper.from_array(VALUES, name)


def forward(initializer=True):
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17, "own": 1]>
        m (float[N,3] x) => (float[N,2] y) { z = MatMul (x, w) y = Relu (z) }""")
    if initializer:
        model.graph.initializer.append(tensor())
    return model


def in_initializer():
    model = forward()
    return model, model.graph.initializer[0]


def in_constant():
    model = forward(initializer=False)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor("value")))
    return model, model.graph.node[0].attribute[0].t


def in_branch():
    model = forward()
    branch = helper.make_graph(
        [helper.make_node("Add", ["y", "c"], ["s"])],
        "branch",
        [],
        [helper.make_tensor_value_info("s", 1, None)],
        [numpy_helper.from_array(np.ones((3, 2), np.float32)[:1], "c")],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    node = helper.make_node("If", ["yes"], ["t"], then_branch=branch, else_branch=branch)
    model.graph.node.append(node)
    branches = {a.name: a.g for a in model.graph.node[-1].attribute}
    return model, branches["then_branch"].initializer[0]


def in_function():
    model = forward()
    function = helper.make_function(
        "own",
        "F",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["c"], value=tensor("value")),
            helper.make_node("Add", ["a", "c"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    model.functions.append(function)
    return model, model.functions[0].node[0].attribute[0].t


def in_sparse_initializer():
    model = forward(initializer=False)
    sparse = model.graph.sparse_initializer.add()
    sparse.dims.extend([3, 2])
    sparse.values.CopyFrom(numpy_helper.from_array(VALUES.ravel(), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(6), "i"))
    return model, sparse.values


def in_list_of_tensors():
    model = forward()
    attribute = model.graph.node[0].attribute.add(name="more", type=AttributeProto.TENSORS)
    attribute.tensors.append(tensor("t"))
    return model, attribute.tensors[0]


def in_initialization():
    model = graphopt.training_graph(forward(), "mse", RMSProp(W)).model
    stored = {tensor.name: tensor for tensor in model.training_info[0].initialization.initializer}
    return model, stored["w"]


def in_algorithm():
    model = forward()
    info = model.training_info.add()
    info.algorithm.initializer.append(tensor("a"))
    return model, info.algorithm.initializer[0]


PLACES = [
    in_initializer,
    in_constant,
    in_branch,
    in_function,
    in_sparse_initializer,
    in_list_of_tensors,
    in_initialization,
    in_algorithm,
]
BAD = ["../w.bin", "sub/../../w.bin", "ABSOLUTE", "C:\\w.bin", "..\\w.bin", "link.bin", ""]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The model's folder, which is not the current one; a secret in both folders around it."""
    inner = tmp_path / "models" / "net"
    inner.mkdir(parents=True)
    for place in (tmp_path, inner.parent):
        (place / "w.bin").write_bytes(b"secret! " * 3)
    (inner / "link.bin").symlink_to(tmp_path / "w.bin")
    monkeypatch.chdir(tmp_path)
    return inner


def calls(path):
    """All that reads a forward model or a training graph from a file."""
    return {
        "parameters": lambda: graphopt.parameters(path),
        "training_graph": lambda: graphopt.training_graph(path, "mse", RMSProp(W)),
        "export_on_device": lambda: graphopt.export_on_device(
            path, "mse", RMSProp(W), path.parent / "device"
        ),
        "load": lambda: graphopt.load(path),
        "Session": lambda: graphopt.Session(path),
        "profile": lambda: graphopt.profile(path),
    }


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", BAD)
def test_refused_wherever_it_stands(place, location, folder, tmp_path):
    model, found = place()
    outside(found, str(tmp_path / "w.bin") if location == "ABSOLUTE" else location)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    before = sorted(tmp_path.rglob("*"))
    for name, call in calls(path).items():
        with pytest.raises(ValueError, match=r"m\.onnx.*(folder of the model|somewhere else)"):
            pytest.fail(f"{name} gave {call()}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", PLACES)
def test_a_missing_file_is_named(place, folder):
    model, found = place()
    outside(found, "w.bin")  # which is in the current folder
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for name, call in calls(path).items():
        with pytest.raises(FileNotFoundError, match=r"m\.onnx': no file '.*net/w\.bin'"):
            pytest.fail(f"{name} gave {call()}")


@pytest.mark.parametrize("place", [in_initializer, in_constant])
def test_read_beside_the_model(place, folder):
    model, found = place()
    outside(found, "sub/w.bin", offset=8, length=24)
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").write_bytes(b"8 bytes." + VALUES.tobytes())
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    graph = graphopt.training_graph(path, "mse", RMSProp(W))
    np.testing.assert_array_equal(graph.carried[0].initial, VALUES.reshape(1, -1))


def test_values_to_start_from_are_read_beside_the_training_graph(folder):
    model, found = in_initialization()
    outside(found, "start.bin")
    (folder / "start.bin").write_bytes((VALUES + 1).tobytes())
    path = folder / "train.onnx"
    path.write_bytes(model.SerializeToString())
    np.testing.assert_array_equal(graphopt.Session(path).state["w"], VALUES + 1)


def test_links_in_a_cache(folder, tmp_path):
    """A cache of downloads has the files in one folder, and links to them in another."""
    model, found = in_initializer()
    outside(found, "w.bin")
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "1234").write_bytes(model.SerializeToString())
    (blobs / "5678").write_bytes(VALUES.tobytes())
    (folder / "m.onnx").symlink_to(blobs / "1234")
    (folder / "w.bin").symlink_to(blobs / "5678")
    assert graphopt.parameters(folder / "m.onnx") == [Parameter("w", (3, 2), op_type="MatMul")]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"length": 20}, r"'w' of shape \[3, 2\] has 20 B in a file, expected 24 B"),
        ({"length": 10**15}, r"has 909\.5 TiB in a file, expected 24 B"),
        ({"offset": 8}, r"bytes 8 to 32 of '.*w\.bin', which has 24"),
        ({"offset": -8}, "offset '-8' in a file, expected a number"),
        ({"offset": "1e3"}, "offset '1e3' in a file, expected a number"),
    ],
)
def test_wrong_sizes(entries, message, folder):
    model, found = in_initializer()
    outside(found, "w.bin", **entries)
    (folder / "w.bin").write_bytes(VALUES.tobytes())
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=f"m.onnx' is damaged: .*{message}"):
        graphopt.parameters(path)


def test_a_folder_and_a_pipe_in_its_place(folder):
    model, found = in_initializer()
    outside(found, "w.bin")
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    (folder / "w.bin").mkdir()
    with pytest.raises(ValueError, match="no regular file"):
        graphopt.parameters(path)
    (folder / "w.bin").rmdir()
    os.mkfifo(folder / "w.bin")  # which would be waited for
    with pytest.raises(ValueError, match="no regular file"):
        graphopt.parameters(path)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("place", [in_initializer, in_initialization, in_constant])
def test_a_model_in_memory_is_not_read_from_the_current_folder(place):
    model, found = place()
    outside(found, "w.bin")
    for call in (
        lambda: graphopt.parameters(model),
        lambda: graphopt.training_graph(model, "mse", RMSProp(W)),
        lambda: graphopt.Session(model),
    ):
        with pytest.raises(ValueError, match=r"in the file 'w\.bin', which was not loaded"):
            call()


def test_a_model_of_onnx_ir(folder, tmp_path):
    model, found = in_initializer()
    outside(found, "../w.bin")
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    for call in (graphopt.parameters, lambda m: graphopt.training_graph(m, "mse", RMSProp(W))):
        with pytest.raises(ValueError, match="folder of the model"):
            call(ir.load(path))
    model, found = in_initializer()
    outside(found, "w.bin")
    path.write_bytes(model.SerializeToString())
    (folder / "w.bin").write_bytes(VALUES.tobytes())
    shutil.copy(folder / "w.bin", tmp_path / "elsewhere.bin")
    assert graphopt.parameters(ir.load(path)) == [Parameter("w", (3, 2), op_type="MatMul")]
