"""Damaged files: one kind of error, which names the file and what is wrong in it."""

import base64
import io
import os
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt import GraphBuilder, Parameter, RMSProp, manifest
from graphopt.examples import digits_cnn
from graphopt.samples import read_samples
from tests.helpers.command_line import run
from tools.faults.mutations import damaged

pytestmark = pytest.mark.any_runtime


@pytest.fixture(scope="module")
def cnn():
    return digits_cnn.build()


@pytest.fixture(scope="module")
def trained(cnn):
    optimizer = RMSProp(graphopt.parameters(cnn), momentum=0.9)
    return graphopt.training_graph(cnn, "cross_entropy", optimizer).model


def copied(model):
    own = onnx.ModelProto()
    own.CopyFrom(model)
    return own


def written(tmp_path, model):
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def short_constant(model):
    tensor = TensorProto(name="c", data_type=1, dims=[4, 4], raw_data=bytes(8))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))


def short_constant_in_a_branch(model):
    tensor = TensorProto(name="c", data_type=1, dims=[4, 4], raw_data=bytes(8))
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["d"], value=tensor)],
        "branch",
        [],
        [helper.make_tensor_value_info("d", 1, [4, 4])],
    )
    node = helper.make_node("If", ["yes"], ["e"], then_branch=branch, else_branch=branch)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(node)


def short_initializer(model):
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-1]


def no_values(model):
    model.graph.initializer[0].ClearField("raw_data")


def huge(model):
    model.graph.initializer[0].dims[:] = [2**31, 2**31]


def of_no_type(model):
    model.graph.initializer[0].data_type = 99


def calls_itself(model):
    function = helper.make_function(
        "own", "F", ["a"], ["b"], [helper.make_node("F", ["a"], ["b"], domain="own")], []
    )
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))


FORWARD = {
    "short constant": (
        short_constant,
        r"the Constant that gives 'c' of shape \[4, 4\] has 8 bytes",
    ),
    "in a branch": (short_constant_in_a_branch, r"of shape \[4, 4\] has 8 bytes, expected 64"),
    "short initializer": (short_initializer, "'conv1.weight' of shape .* bytes, expected"),
    "no values": (no_values, r"'conv1.weight' of shape \[16, 1, 3, 3\] has no values"),
    "huge": (huge, "'conv1.weight' has the shape .*, expected less than"),
    "element type": (of_no_type, "'conv1.weight' has the element type 99"),
    "endless function": (calls_itself, "the function 'own::F' calls itself"),
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_model(name, cnn, tmp_path):
    damage, message = FORWARD[name]
    model = copied(cnn)
    optimizer = RMSProp(graphopt.parameters(cnn))
    damage(model)
    path = written(tmp_path, model)
    for given, named in ((path, "bad.onnx"), (model, "")):
        for call in (
            lambda given=given: graphopt.parameters(given),
            lambda given=given: graphopt.training_graph(given, "cross_entropy", optimizer),
            lambda given=given: graphopt.export_on_device(
                given, "cross_entropy", optimizer, tmp_path / "device"
            ),
        ):
            with pytest.raises(ValueError, match=f"{named}.*{message}") as caught:
                call()
            assert type(caught.value) is ValueError
    assert not (tmp_path / "device").exists()


def entry(key, value):
    def change(model):
        (found,) = [e for e in model.metadata_props if e.key == f"graphopt.{key}"]
        found.value = value

    return change


def carried(model):
    return next(value for value in model.graph.input if value.name.startswith("mean_square"))


def without_element_type(model):
    carried(model).type.tensor_type.elem_type = 0


def without_shape(model):
    carried(model).type.tensor_type.ClearField("shape")


def open_shape(model):
    carried(model).type.tensor_type.shape.dim[0].dim_param = "N"


def of_many_rows(model):
    carried(model).type.tensor_type.shape.dim[0].dim_value = 2**40


def bound_twice(model):
    bindings = model.training_info[0].update_binding
    bindings.append(bindings[0])


def starts_as_another_shape(model):
    tensor = next(t for t in model.training_info[0].initialization.initializer if t.data_type == 1)
    tensor.CopyFrom(numpy_helper.from_array(np.ones(5, np.float32), tensor.name))


def starts_by_a_sum(model):
    model.training_info[0].initialization.node[0].op_type = "Add"


def starts_by_a_long_constant(model):
    node = model.training_info[0].initialization.node[0]
    node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.ones(2, np.float32)))


TRAINING = {
    "no element type": (without_element_type, "is no tensor whose element type is known"),
    "no shape": (without_shape, "has no fixed shape"),
    "open shape": (open_shape, "has no fixed shape"),
    "2**40 rows": (of_many_rows, "does not hold what the metadata says"),
    "bound twice": (bound_twice, "it carries '.*' twice"),
    "another shape at first": (starts_as_another_shape, r"but starts as float32\[5\]"),
    "a sum at first": (starts_by_a_sum, "starts as what Add gives"),
    "a long constant at first": (starts_by_a_long_constant, "starts as what ConstantOfShape gives"),
    "views cut": (entry("views", "{"), "'graphopt.views' is not JSON"),
    "views a number": (entry("views", '{"bucket0": 5}'), "is int, expected list"),
    "optimizer a list": (entry("optimizer", "[1]"), "'graphopt.optimizer' is list"),
    "labels incomplete": (entry("class_labels", '[{"name": "labels"}]'), "KeyError 'classes'"),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_graph(name, trained, tmp_path):
    damage, message = TRAINING[name]
    model = copied(trained)
    damage(model)
    path = written(tmp_path, model)
    for call in (graphopt.load, graphopt.Session, graphopt.profile):
        with pytest.raises(ValueError, match=f"bad.onnx.*{message}") as caught:
            call(path)
        assert type(caught.value) is ValueError
    with pytest.raises(ValueError, match=message):
        graphopt.Session(model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("xx", "'graphopt.forward': Incorrect padding"),
        ("??", "'graphopt.forward': "),
        (base64.b64encode(b"abc").decode(), "'graphopt.forward': Error -3"),
        (base64.b64encode(zlib.compress(b"\xff" * 100)).decode(), "'graphopt.forward': "),
        (base64.b64encode(zlib.compress(b"\x08\x08" * 50)[:-5]).decode(), "it is truncated"),
    ],
)
def test_packed_forward_model(text, message, trained, tmp_path):
    model = copied(trained)
    entry("forward", text)(model)
    session = graphopt.Session(written(tmp_path, model))
    with pytest.raises(ValueError, match=rf"bad\.onnx.*{message}"):
        session.export(tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


def test_zeros_are_not_unpacked(monkeypatch):
    monkeypatch.setattr(manifest, "_UNPACKED", 2**20)
    bomb = base64.b64encode(zlib.compress(bytes(2**26), 9)).decode()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"than the 1\.2 MiB .* GRAPHOPT_MEMORY_LIM"):
            manifest.unpacked(bomb, {}, {}, {})
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_the_limit_is_the_user_s(trained, tmp_path, monkeypatch):
    path = written(tmp_path, trained)
    monkeypatch.setenv("GRAPHOPT_MEMORY_LIMIT", "1000")
    with pytest.raises(ValueError, match=r"bad\.onnx.*state of the training graph has .* KiB"):
        graphopt.Session(path)
    monkeypatch.setenv("GRAPHOPT_MEMORY_LIMIT", str(2**24))
    session = graphopt.Session(path)
    monkeypatch.setenv("GRAPHOPT_MEMORY_LIMIT", "100")
    with pytest.raises(ValueError, match=r"'graphopt.forward' takes more memory than the 100 B"):
        session.export(tmp_path / "out.onnx")
    monkeypatch.setenv("GRAPHOPT_MEMORY_LIMIT", "much")
    with pytest.raises(ValueError, match="got 'much', expected a number of bytes"):
        graphopt.Session(path)


def test_a_state_of_more_than_the_machine_has(tmp_path):
    graph = graphopt.update_graph(RMSProp([Parameter("w", (2**38,))]))
    graph.save(tmp_path / "large.onnx")
    with pytest.raises(ValueError, match=r"large\.onnx.*has 2\.0 TiB"):
        graphopt.Session(tmp_path / "large.onnx")


def test_what_fails_inside_names_the_file(cnn, tmp_path):
    """A rule of an operator that fails in its own way."""
    model = copied(cnn)
    node = next(node for node in model.graph.node if node.op_type == "MaxPool")
    node.op_type = "Resize"
    node.input.extend(["", "scales"])
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 1, 0.5, 0.5]), "scales"))
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("mode", "neares"))
    path = written(tmp_path, model)
    with pytest.raises(ValueError, match=r"bad\.onnx.*neares") as caught:
        graphopt.inspect(path)
    assert type(caught.value) is ValueError


def test_what_a_user_s_function_raises_comes_through(cnn, tmp_path):
    def loss(_op, value):
        raise KeyError(value.name)

    path = written(tmp_path, cnn)
    optimizer = RMSProp(graphopt.parameters(path))
    with pytest.raises(KeyError):
        graphopt.training_graph(path, loss, optimizer)
    with pytest.raises(KeyError):
        graphopt.export_on_device(path, loss, optimizer, tmp_path / "device")


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def array(header=None, values=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, header or {"descr": "<f4", "fortran_order": False, "shape": (4, 3)}
    )
    return buffer.getvalue() + values


def flipped(data):
    """The compressed bytes of the first member are no such any more."""
    start = data.index(b"x.npy") + len("x.npy")
    return data[:start] + b"\xff" * 20 + data[start + 20 :]


SOUND = archive(x=array(values=bytes(48)))
HUGE = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 3)}
OBJECTS = {"descr": "|O", "fortran_order": False, "shape": (4,)}
SAMPLES = {
    "compression": (flipped(SOUND), "it is damaged: Error -3"),
    "cut": (SOUND[:-30], "not an .npz file"),
    "no array": (archive(x=b"hello, this is text"), "it is damaged: "),
    "shape": (archive(x=array(HUGE, bytes(48))), r"to have the shape \[1099511627776, 3\], but"),
    "objects": (archive(x=array(OBJECTS, bytes(32))), "Object arrays cannot be loaded"),
    "header": (archive(x=b"\x93NUMPY\x01\x00\x10\x00{'descr': open()}"), "it is damaged: "),
    "too short": (archive(x=array(values=bytes(20))), "but has"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name, trained, tmp_path):
    data, message = SAMPLES[name]
    path = tmp_path / "bad.npz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"bad\.npz'.*{message}"):
        read_samples(path)
    graph = tmp_path / "t.onnx"
    graph.write_bytes(trained.SerializeToString())
    result = run("train", graph, "--data", path, "--epochs", "1")
    assert result.exit_code == 1
    assert "bad.npz" in result.output.replace("\n", "")


def test_samples_that_are_small_only_when_packed(tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000), np.float32))
    assert path.stat().st_size < 10_000
    assert read_samples(path)["x"].shape == (1000, 1000)
    monkeypatch.setenv("GRAPHOPT_MEMORY_LIMIT", str(10**6))
    with pytest.raises(ValueError, match=r"d\.npz', unpacked, has 3\.8 MiB, and takes more memory"):
        read_samples(path)


def test_the_tool_damages_as_its_seed_says(trained):
    data = trained.SerializeToString()
    for seed in range(20):
        first, second = (damaged(np.random.default_rng(seed), data) for _ in range(2))
        assert first == second
        assert first != data


def without_output(model):
    node = helper.make_node("Constant", [], [], value=numpy_helper.from_array(np.ones(1)))
    model.graph.node.insert(0, node)


def of_a_bad_opset(model):
    model.opset_import[0].version = -(2**63)


@pytest.mark.parametrize("damage", [without_output, of_a_bad_opset])
def test_what_has_come_through_export_on_device(damage, cnn, tmp_path):
    model = copied(cnn)
    damage(model)
    optimizer = RMSProp(graphopt.parameters(cnn))
    for call in (
        lambda path: graphopt.export_on_device(
            path, "cross_entropy", optimizer, tmp_path / "device"
        ),
        lambda path: graphopt.training_graph(path, "cross_entropy", optimizer),
    ):
        with pytest.raises(ValueError, match=r"bad\.onnx") as caught:
            call(written(tmp_path, model))
        assert type(caught.value) is ValueError


def test_a_command_names_the_file_too(cnn, tmp_path):
    model = copied(cnn)
    node = helper.make_node("Constant", [], ["c"], other=1)
    model.graph.node.insert(0, node)
    path = written(tmp_path, model)
    result = run("inspect", path)
    assert result.exit_code == 1
    assert "bad.onnx" in result.output.replace("\n", "")


def test_a_checkpoint_of_a_graph_whose_model_is_damaged(trained, tmp_path):
    model = copied(trained)
    entry("forward", "xx")(model)
    session = graphopt.Session(written(tmp_path, model))
    with pytest.raises(ValueError, match=r"bad\.onnx.*'graphopt.forward': Incorrect padding"):
        session.save_checkpoint(tmp_path / "c")


def test_a_number_beyond_64_bits_is_no_text():
    with pytest.raises(ValueError, match="larger than 64 bits hold"):
        GraphBuilder(ir.Graph([], [], nodes=[], name="g")).constant([1, 2**66])


def test_a_forward_model_that_is_damaged_is_named(tmp_path, trained):
    """The metadata has no forward model, or does not say what stands in which input."""
    path = tmp_path / "train.onnx"
    lacking = copied(trained)
    for entry in lacking.metadata_props:
        if entry.key == "graphopt.forward":
            entry.key = "other"
    path.write_bytes(lacking.SerializeToString())
    with pytest.raises(ValueError, match=r"train\.onnx': this graph is an update alone"):
        graphopt.Session(path).export(tmp_path / "o.onnx")
    model = copied(trained)
    for entry in model.metadata_props:
        if entry.key == "graphopt.views":
            entry.key = "other"
    path.write_bytes(model.SerializeToString())
    for call in (graphopt.verify, graphopt.profile):
        with pytest.raises(ValueError, match=r"train\.onnx'"):
            call(path, steps=1)


@pytest.mark.parametrize("known", [False, True], ids=["session", "profile"])
def test_a_full_temporary_folder_is_named(tmp_path, known):
    """The runtime's files may have 20 bytes: as on a full disk, they are not whole."""
    program = (
        "import resource, signal, numpy as np, graphopt\n"
        "graph = graphopt.update_graph(graphopt.RMSProp([graphopt.Parameter('w', (3,))]))\n"
        "feeds, start = {'w_grad': np.ones(3, 'f')}, {'w': np.ones(3, 'f')}\n"
        f"if {known}: graphopt.Session(graph, start)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
        "try:\n"
        "    graphopt.profile(graph, feeds, parameters=start, steps=2)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    what = "the profile" if known else "a model of some bytes"
    assert f"cannot write {what} to the temporary folder '{tmp_path}/" in done.stdout
    assert "set the environment variable TMPDIR" in done.stdout
    assert not list(tmp_path.glob("graphopt-*"))
