"""Whatever bytes a file has, it opens as a model that can be relied on, or is refused by name."""

import builtins
import contextlib
import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt._seal import without_seal
from graphopt.inspection.opening.untrusted import opened
from graphopt.soundness import nodes, wire
from models.zoo import ZOO
from tests.helpers.exporter import silence

pytestmark = pytest.mark.any_runtime

F = TensorProto.FLOAT


def parse(text, functions="", opset=18, **arrays):
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}, "d" : 1]> {text} {functions}'
    )
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()
    )
    return model


def plain():
    """x times w, then Tanh."""
    return parse("m (float[N,4] x) => (float[N,4] y) { a = Mul(x, w) y = Tanh(a) }",
                 w=np.ones(4, "f"))  # fmt: skip


def location(stored):
    """The file that a tensor says its values are in."""
    return next((entry.value for entry in stored.external_data if entry.key == "location"), None)


def tensor(dims=(2,), kind=F, **fields):
    return TensorProto(name="t", dims=dims, data_type=kind, **fields)


def with_tensor(stored):
    model = plain()
    model.graph.initializer.append(stored)
    return model


def with_node(node):
    model = plain()
    model.graph.node.append(node)
    return model


def with_attribute(**fields):
    node = helper.make_node("Identity", ["a"], ["b"])
    node.attribute.append(onnx.AttributeProto(**{"name": "k", **fields}))
    return with_node(node)


def changed(change, model=None):
    model = plain() if model is None else model
    change(model)
    return model


def call(op_type, output="z", domain="d", **attributes):
    return helper.make_node(op_type, ["x"], [output], domain=domain, **attributes)


def function(name, body, domain="d", overload=""):
    made = helper.make_function(
        domain, name, ["x"], ["z"], body, [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]
    )
    made.overload = overload
    return made


def with_functions(*functions):
    model = plain()
    model.functions.extend(functions)
    return model


def laughs(levels, width=10):
    """Each function calls the one below ten times."""
    functions = [function("f0", [call("Relu", domain="")])]
    for level in range(1, levels):
        body = [call(f"f{level - 1}", f"v{i}") for i in range(width - 1)]
        functions.append(function(f"f{level}", [*body, call(f"f{level - 1}")]))
    return with_functions(*functions)


def nested(depth):
    model = plain()
    graph = model.graph
    for _ in range(depth):
        node = graph.node.add(op_type="If", input=["x"])
        graph = node.attribute.add(name="then_branch", type="GRAPH").g
    graph.node.add(op_type="Relu", input=["x"], output=["i"])
    return model


def branch(*body, outputs=("r",)):
    infos = [helper.make_tensor_value_info(name, F, None) for name in outputs]
    graph = helper.make_graph(list(body), "inside", [], infos)
    return helper.make_node("If", ["x"], ["s"], then_branch=graph, else_branch=graph)


def loop(op_type, taken, inputs, results, outputs=1, **attributes):
    """A node that takes so many values, and whose graph has so many inputs and outputs."""
    infos = [helper.make_tensor_value_info(f"i{i}", F, None) for i in range(inputs)]
    ends = [helper.make_tensor_value_info("x", F, None)] * results
    graph = helper.make_graph([], "inside", infos, ends)
    names = ["then_branch", "else_branch"] if op_type == "If" else ["body"]
    given = [f"o{i}" for i in range(outputs)]
    return helper.make_node(
        op_type, ["x"] * taken, given, **dict.fromkeys(names, graph), **attributes
    )


def declared(kind):
    model = plain()
    model.graph.value_info.append(onnx.ValueInfoProto(name="a", type=kind))
    return model


def sequences(depth):
    kind = helper.make_tensor_type_proto(F, [1])
    for _ in range(depth):
        kind = helper.make_sequence_type_proto(kind)
    return declared(kind)


def training_info(initialization):
    model = plain()
    model.training_info.add().initialization.CopyFrom(initialization)
    return model


def sparse(dims, values=2):
    made = plain()
    made.graph.sparse_initializer.append(
        onnx.SparseTensorProto(
            dims=dims,
            values=TensorProto(name="s", dims=[2], data_type=F, float_data=[1] * values),
            indices=TensorProto(dims=[2], data_type=TensorProto.INT64, int64_data=[0, 1]),
        )
    )
    return made


DAMAGED = {
    "no graph": (onnx.ModelProto(ir_version=8), "holds no graph"),
    "no nodes": (changed(lambda m: m.graph.ClearField("node")), "holds no graph"),
    "no opset": (changed(lambda m: m.ClearField("opset_import")), "no opset_import"),
    "opset 0": (changed(lambda m: setattr(m.opset_import[0], "version", 0)), "got version 0"),
    "no IR version": (changed(lambda m: m.ClearField("ir_version")), "ir_version: got 0"),
    "input without a type": (changed(lambda m: m.graph.input.add(name="q")), "'q'.*has no type"),
    "negative dimension": (with_tensor(tensor((-1, 2))), "'t' has the shape .-1, 2., expected"),
    "too many elements": (with_tensor(tensor((2**31, 2**31))), "'t' has the shape"),
    "too many next to 0": (with_tensor(tensor((0, 2**62, 2**62))), "'t' has the shape"),
    "too many dimensions": (with_tensor(tensor([1] * 65)), "'t' has 65 dimensions"),
    "unknown element type": (with_tensor(tensor(kind=99)), "'t' has the element type 99"),
    "no element type": (with_tensor(tensor(kind=0)), "'t' has the element type 0"),
    "segment": (with_tensor(tensor(segment={"begin": 0})), "'t' is a segment"),
    "raw too short": (with_tensor(tensor(raw_data=b"1234567")), r"\[2\] has 7 bytes, expected 8"),
    "raw too long": (with_tensor(tensor((), raw_data=b"12345")), r"\[\] has 5 bytes, expected 4"),
    "raw int4": (with_tensor(tensor((3,), TensorProto.INT4, raw_data=b"1")), "1 bytes, expected 2"),
    "raw text": (with_tensor(tensor(kind=TensorProto.STRING, raw_data=b"1")), "in raw_data"),
    "typed too short": (with_tensor(tensor(float_data=[1])), "has 1 values, expected 2"),
    "typed complex": (with_tensor(tensor(kind=14, float_data=[1] * 3)), "3 values, expected 4"),
    "typed int4": (with_tensor(tensor((3,), 22, int32_data=[1] * 3)), "3 values, expected 2"),
    "wrong field": (with_tensor(tensor(int64_data=[1, 2])), "in int64_data, expected.*float_data"),
    "both fields": (with_tensor(tensor(float_data=[1, 2], raw_data=b"12345678")), "and|raw_data"),
    "long name": (with_tensor(tensor().__class__(name="n" * 70000, data_type=F)), "70000 char"),
    "tensor in an attribute": (with_attribute(type="TENSOR", t=tensor((-5,))), "'k' of the Ident"),
    "sparse dimension": (sparse([2**50, 2**50]), "sparse initializer 's' has the shape"),
    "sparse values": (sparse([9], values=1), "the values of sparse initializer 's'"),
    "declared dimension": (declared(helper.make_tensor_type_proto(F, [-2])), "'a' has the shape"),
    "declared size": (declared(helper.make_tensor_type_proto(F, [2**39, 2])), "'a' has the sh"),
    "declared type": (declared(helper.make_tensor_type_proto(77, [])), "'a' has the element type"),
    "declared sequences": (sequences(40), "the type of 'a' is nested deeper"),
    "declared sequence": (
        declared(onnx.TypeProto(sequence_type=onnx.TypeProto.Sequence())), "'a' is a seq.* of no"),
    "declared sequence of anything": (
        declared(helper.make_sequence_type_proto(helper.make_tensor_type_proto(0, []))),
        "'a' is a sequence of tensors without"),
    "no operator": (with_node(helper.make_node("", ["a"], ["b"])), "the  that gives 'b'.*no oper"),
    "attribute without a name": (with_attribute(name="", type="INT", i=1), "has no name"),
    "attribute without a type": (with_attribute(i=1), "'k' of the Identity.*has no type"),
    "attribute of two kinds": (with_attribute(type="INT", i=1, f=2.0), "type INT, but holds f and"),
    "hidden graph": (with_attribute(type="INT", g=plain().graph), "type INT, but holds g"),
    "no tensor": (with_attribute(type="TENSOR"), "type TENSOR, but holds nothing"),
    "reference outside": (with_attribute(type="INT", ref_attr_name="q"), "refers to another"),
    "same attribute twice": (
        changed(lambda m: m.graph.node[2].attribute.add(name="k", type="INT", i=2),
                with_attribute(type="INT", i=1)), "that gives 'b' has an attribute twice"),
    "name given twice": (with_node(helper.make_node("Relu", ["x"], ["a"])), "gives 'a' twice"),
    "node gives an input": (with_node(helper.make_node("Relu", ["a"], ["x"])), "gives 'x' twice"),
    "same initializer twice": (with_tensor(numpy_helper.from_array(np.ones(4, "f"), "w")), "'w' t"),
    "input without a name": (
        changed(lambda m: m.graph.input.append(helper.make_tensor_value_info("", F, []))),
        "without a name"),
    "unknown name": (with_node(helper.make_node("Relu", ["q"], ["b"])), "gives 'b' reads 'q', whi"),
    "unknown output": (changed(lambda m: m.graph.output.add(name="q")), "the graph reads 'q'"),
    "unknown name inside": (
        with_node(branch(helper.make_node("Relu", ["q"], ["r"]))), "gives 'r' reads 'q'"),
    "twice inside": (
        with_node(branch(call("Relu", "r", ""), call("Tanh", "r", ""))), "in .*gives 'r' twice"),
    "circle": (
        parse("m (float[4] x) => (float[4] y) { a = Add(x, c) b = Relu(a) c = Tanh(b) y = Exp(c)}"),
        "in a circle: the (Add|Relu|Tanh) that gives"),
    "circle through a branch": (
        with_node(branch(helper.make_node("Relu", ["s"], ["r"]))), "in a circle: the If"),
    "circle inside": (
        with_node(branch(helper.make_node("Relu", ["r"], ["q"]),
                         helper.make_node("Relu", ["q"], ["r"]))), "nodes of a graph in .*circle"),
    "nested too deeply": (nested(40), "is in more than 30 nodes"),
    "function reads outside": (
        with_functions(function("f", [helper.make_node("Add", ["x", "w"], ["z"])])),
        "gives 'z' reads 'w'"),
    "function twice": (
        with_functions(*[function("f", [call("Relu", domain="")])] * 2), "'d::f' is defined twice"),
    "function without a name": (
        with_functions(function("", [call("Relu", domain="")])), "a function has no name"),
    "function calls itself": (
        with_functions(function("f", [call("f")])), "function 'd::f' calls itself"),
    "functions call each other": (
        with_functions(function("f", [call("g")]), function("g", [call("h")]),
                       function("h", [call("f")])), "'d::[fgh]' calls itself"),
    "function calls itself in a branch": (
        with_functions(function("f", [branch(call("f", "r")), call("Relu", domain="")])),
        "'d::f' calls itself"),
    "ONNX's own domain by its other name": (
        with_functions(function("f", [call("f", domain="ai.onnx")], domain="")), "calls itself"),
    "billion laughs": (laughs(12), "'d::f7' has 2000000 nodes or more"),
    "empty functions": (
        with_functions(*(function(f"f{i}", [call(f"f{i - 1}", f"v{j}") for j in range(9)]
                                  + [call(f"f{i - 1}")]) for i in range(1, 60)),
                       function("f0", [call("Relu", domain="")])), "nodes or more"),
    "call of more than a function takes": (
        changed(lambda m: m.graph.node.append(
            helper.make_node("f0", ["x", "a"], ["b"], domain="d")), laughs(1)),
        "the f0 that gives 'b' has 2 inputs and 1 outputs, .* has 1 and 1"),
    "call of more than a function gives": (
        changed(lambda m: m.functions[0].node.append(
            helper.make_node("f0", ["x"], ["v", "u"], domain="d")), laughs(1)), "has 1 and 1"),
    "If without a branch": (
        changed(lambda m: m.graph.node[2].attribute.pop(), with_node(branch())),
        "no graph 'then_branch'"),
    "If with a number for a branch": (
        changed(lambda m: m.graph.node[2].attribute[0].CopyFrom(
            helper.make_attribute("else_branch", 1)), with_node(branch())), "no graph 'else_bra"),
    "branch gives too little": (
        with_node(branch(outputs=())), "'then_branch' of the If .*gives 0 values, expected 1"),
    "branch takes something": (
        with_node(loop("If", 0, 1, 1, outputs=1)), "'then_branch' .*takes 1 values, expected 0"),
    "body gives too little": (
        with_node(loop("Loop", 3, 3, 1, outputs=1)), "'body' of the Loop .*gives 0 values, exp"),
    "body takes too little": (
        with_node(loop("Loop", 3, 2, 2, outputs=1)), "'body' .*takes 2 values, expected 3"),
    "scan takes too much": (
        with_node(loop("Scan", 1, 2, 1, num_scan_inputs=1)), "takes 2 values, expected 1"),
    "scan without scan inputs": (with_node(loop("Scan", 1, 1, 1)), "no number 'num_scan_inputs'"),
    "scan of too much": (
        with_node(loop("Scan", 1, 1, 1, num_scan_inputs=2)), "scan_inputs is 2, expected 1 to 1"),
    "scan of nothing": (
        with_node(loop("Scan", 1, 1, 1, num_scan_inputs=0)), "scan_inputs is 0, expected 1 to 1"),
    "initialization": (
        training_info(helper.make_graph([helper.make_node("Relu", ["x"], ["i"])], "i", [], [])),
        "gives 'i' reads 'x'"),
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize(("model", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_models_are_refused(model, message):
    before = model.SerializeToString()
    with pytest.raises(ValueError, match=f"^the model is damaged: .*{message}"):
        opened(model)
    assert model.SerializeToString() == before


IN_FILES = {key: value for key, value in DAMAGED.items() if key not in {"nested too deeply"}}


@pytest.mark.parametrize(("model", "message"), IN_FILES.values(), ids=IN_FILES)
def test_damaged_files_are_refused_by_name(model, message, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=rf"bad.onnx' is no readable ONNX model: .*{message}"):
        opened(path)


def zipped():
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data.pkl", b"x")
        return file.getvalue()


def message(tag, content):
    """A field of an ONNX file, by hand."""
    length, digits = len(content), b""
    while True:
        digits += bytes([length & 0x7F | (0x80 if length > 0x7F else 0)])
        length >>= 7
        if not length:
            return bytes([tag << 3 | 2]) + digits + content


MODEL = plain().SerializeToString()
FILES = {
    "empty": (b"", "it is empty"),
    "zeros": (bytes(100_000_000), "at byte 0 there is no field"),
    "ones": (b"\xff" * 1000, "the number at byte 0 has no end"),
    "random": (random.Random(0).randbytes(1000), "truncated or damaged|no field"),
    "text": (b"graph m {\n}\n", "it is text"),
    "JSON": (b'{"a": 1}' * 100, "it is text"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
    "ZIP": (zipped(), "it is a ZIP archive"),
    "pickle": (pickle.dumps({"a": [1.0] * 100}), "no field|truncated or damaged"),
    "ORT format": (b"\x30\x00\x00\x00ORTM" + bytes(100), r"own format \(.ort\)"),
    "on-device checkpoint": (b"\x30\x00\x00\x00ODTC" + bytes(100), "checkpoint of on-device"),
    "safetensors": (b'\x10\x00\x00\x00\x00\x00\x00\x00{"a": 1}' + bytes(100), "safetensors"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), "no field|truncated or damaged"),
    "truncated": (MODEL[:-5], "it is truncated or damaged"),
    "group": (MODEL + b"\x0b\x0c", "no field of an ONNX model"),
    "field 0": (MODEL + b"\x02\x00", "it is damaged: "),
    "not UTF-8": (MODEL.replace(b"Tanh", b"T\xffnh"), "is not UTF-8"),
    "number without end": (MODEL + b"\x08" + b"\x80" * 10 + b"\x01", "no field|no end|damaged"),
}


@pytest.mark.parametrize(("content", "expected"), FILES.values(), ids=FILES)
def test_other_files_are_refused_by_name(content, expected, tmp_path):
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"other.onnx' is no readable ONNX model: .*({expected})"):
        opened(path)


def test_real_checkpoints_are_named(tmp_path):
    model = ZOO["mlp"].build()
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    files = graphopt.export_on_device(model, "cross_entropy", optimizer, tmp_path / "device")
    session = graphopt.Session(graphopt.training_graph(model, "cross_entropy", optimizer))
    session.save_checkpoint(tmp_path / "session.safetensors")
    with pytest.raises(ValueError, match="it is a checkpoint of on-device training"):
        opened(files.checkpoint)
    with pytest.raises(ValueError, match="it is a safetensors file"):
        opened(tmp_path / "session.safetensors")


def test_files_of_two_gib_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)  # takes no space
    monkeypatch.setattr(Path, "open", None)
    with pytest.raises(ValueError, match=r"large.onnx'.*it has 2.0 GiB"):
        opened(path)


def test_what_is_no_file_or_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        opened(tmp_path / "missing.onnx")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        opened(tmp_path)
    if Path("/dev/zero").exists():
        with pytest.raises(FileNotFoundError, match="there is no file"):
            opened("/dev/zero")
    with pytest.raises(TypeError, match="model: got int, expected a path"):
        opened(3)


def test_files_that_would_take_much_more_memory_than_they_have_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "MOST_MESSAGES", 1000)
    path = tmp_path / "bomb.onnx"
    path.write_bytes(MODEL + message(7, message(1, b"") * 2000))
    monkeypatch.setattr(onnx, "load_model_from_string", None)  # so far it must not come
    with pytest.raises(ValueError, match=r"more than .* 1.0 k messages"):
        opened(path)


@pytest.mark.parametrize("field", [message(7, bytes(2000)), b"\x08\x01" * 1000])
def test_numbers_that_take_more_memory_than_they_have_bytes(field, tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "_MOST_NUMBERS", 1500)
    path = tmp_path / "numbers.onnx"
    path.write_bytes(MODEL + message(7, message(5, field + message(8, b"big"))))
    with pytest.raises(ValueError, match=r"1.5 KiB of numbers"):
        opened(path)


def test_messages_in_messages_end(tmp_path):
    content = b""
    for _ in range(200):  # a graph in an attribute of a node of a graph
        content = message(1, message(5, message(6, content)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(MODEL + message(7, content))
    with pytest.raises(ValueError, match="more than 100 levels"):
        opened(path)


def test_millions_of_numbers_in_one_attribute_are_read():
    node = helper.make_node("Trees", ["x"], ["z"], floats=[0.5] * 2_000_000, ints=[300] * 2_000_000)
    data = with_node(node).SerializeToString()
    wire.check_bytes(data)
    with pytest.raises(ValueError, match="truncated or damaged"):
        wire.check_bytes(data[:-1])


def outcome(path):
    """The model, or what the error says; any other exception fails the test."""
    try:
        return opened(path), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("cut", range(len(MODEL)))
def test_every_truncation_is_an_error_or_the_rest(cut, tmp_path):
    path = tmp_path / "cut.onnx"
    path.write_bytes(MODEL[:cut])
    model, error = outcome(path)
    assert "cut.onnx" in error if model is None else model.graph.node


def external(path, dims=(4,)):
    model = plain()
    stored = model.graph.initializer[0]
    stored.ClearField("raw_data")
    del stored.dims[:]
    stored.dims.extend(dims)
    stored.data_location = TensorProto.EXTERNAL
    stored.external_data.add(key="location", value=str(path))
    node = model.graph.node.add(op_type="Constant", output=["k"])
    node.attribute.add(name="value", type="TENSOR").t.CopyFrom(stored)
    return model


@pytest.fixture
def opened_paths(monkeypatch):
    """Whatever Python opens, in whatever way."""
    paths = []
    for owner, name in [(builtins, "open"), (io, "open"), (os, "open")]:
        original = getattr(owner, name)

        def spy(file, *args, original=original, **kwargs):
            paths.append(os.fspath(file) if not isinstance(file, int) else file)
            return original(file, *args, **kwargs)

        monkeypatch.setattr(owner, name, spy)
    return paths


@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "weights.bin"])
def test_external_data_is_never_read(target, tmp_path, opened_paths, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    path = tmp_path / "external.onnx"
    path.write_bytes(external(target).SerializeToString())
    opened_paths.clear()
    for model in (path, external(target), ir.from_proto(external(target))):
        result = opened(model)
        inner = result.graph.node[-1].attribute[0].t
        for stored in (result.graph.initializer[0], inner):
            assert list(stored.dims) == [4]
            assert location(stored) == target
            with pytest.raises(ValueError):  # noqa: PT011 - there are no values, whatever is said
                numpy_helper.to_array(stored)
    assert {Path(name) for name in opened_paths} == {path}


def test_a_model_in_memory_keeps_its_external_data():
    model = external("weights.bin")
    before = model.SerializeToString()
    opened(model)
    assert model.SerializeToString() == before


def test_stripped_tensors_are_as_they_should_be():
    model = with_tensor(tensor((2**20, 2**10)))
    assert opened(model) is model
    assert location(model.graph.initializer[1]) is None


SLOPPY = {
    "an input that has a default": lambda m: m.graph.input.append(
        helper.make_tensor_value_info("w", F, [4])),
    "an output without a type": lambda m: m.graph.output.add(name="a"),
    "an output twice": lambda m: m.graph.output.add(name="y"),
    "a value without a type": lambda m: m.graph.value_info.add(name="a"),
    "a value that is nowhere": lambda m: m.graph.value_info.add(name="gone"),
    "nodes of the same name": lambda m: [setattr(n, "name", "n") for n in m.graph.node],
    "a domain without an opset": lambda m: setattr(m.graph.node[1], "domain", "elsewhere"),
    "an opset twice": lambda m: m.opset_import.add(domain="", version=17),
    "left out": lambda m: m.graph.node[1].input.append(""),
    "numbers that are 0 everywhere": lambda m: m.graph.node[0].attribute.add(
        name="k", type="INTS", ints=[1], i=0, f=0.0, s=b""),
    "a number that is 0 and not written": lambda m: m.graph.node[0].attribute.add(
        name="k", type="INT"),
    "an empty list": lambda m: m.graph.node[0].attribute.add(name="k", type="FLOATS"),
    "a name of a graph around given anew": lambda m: m.graph.node.append(
        branch(helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["r"]))),
    "a branch that gives what is around it": lambda m: m.graph.node.append(
        branch(helper.make_node("Relu", ["x"], ["b"]), outputs=["a"])),
    "a loop": lambda m: m.graph.node.append(loop("Loop", 2, 2, 2)),
    "a loop not all of whose results are used": lambda m: m.graph.node.append(
        loop("Loop", 2, 2, 3)),
    "a scan": lambda m: m.graph.node.append(loop("Scan", 2, 2, 1, num_scan_inputs=1)),
    "a scan of opset 8": lambda m: m.graph.node.append(loop("Scan", 3, 2, 1, num_scan_inputs=1)),
    "an If of another domain": lambda m: m.graph.node.append(call("If")),
    "functions that differ in the overload": lambda m: m.functions.extend(
        function("f", [call("Relu", domain="")], overload=o) for o in ("", "b")),
    "an algorithm that reads the graph": lambda m: m.training_info.add().algorithm.node.append(
        helper.make_node("Relu", ["a"], ["r"])),
    "text of one kind": lambda m: m.graph.initializer.append(
        tensor((1,), TensorProto.STRING, string_data=[b"\xff"])),
    "complex numbers": lambda m: m.graph.initializer.append(
        tensor((1,), TensorProto.COMPLEX64, float_data=[1, 2])),
    "half a byte": lambda m: m.graph.initializer.append(
        tensor((3,), TensorProto.INT4, raw_data=b"12")),
    "no elements": lambda m: m.graph.initializer.append(tensor((0, 3), raw_data=b"")),
}  # fmt: skip


@pytest.mark.parametrize("change", SLOPPY.values(), ids=SLOPPY)
def test_models_that_are_only_careless_open_as_they_are(change, tmp_path):
    model = changed(change)
    assert opened(model) is model
    path = tmp_path / "careless.onnx"
    path.write_bytes(model.SerializeToString())
    assert opened(path) == model


def mixed_up():
    """Nodes in the wrong order in the graph, in a branch and in a function."""
    model = parse(
        "m (float[4] x, bool c) => (float[4] y) { y = Exp(s) s = d.f(r) r = If (c) <"
        "then_branch = g () => (float[4] q) { q = Relu(p) p = Tanh(a) },"
        "else_branch = h () => (float[4] q) { q = Relu(a) }> a = Neg(x) }",
        '<domain: "d", opset_import: ["" : 18]> f (i) => (k) { k = Relu(j) j = Tanh(i) }',
    )
    return model, [["Neg", "If", "f", "Exp"], ["Tanh", "Relu"], ["Tanh", "Relu"]]


def orders(model):
    choice = next(node for node in model.graph.node if node.op_type == "If")
    then = next(a.g for a in choice.attribute if a.name == "then_branch")
    return [[n.op_type for n in g.node] for g in (model.graph, then, model.functions[0])]


def test_nodes_are_brought_into_an_order_in_which_they_run(tmp_path):
    model, expected = mixed_up()
    before = model.SerializeToString()
    assert orders(opened(model)) == expected
    assert model.SerializeToString() == before
    (tmp_path / "mixed.onnx").write_bytes(before)
    result = opened(tmp_path / "mixed.onnx")
    assert orders(result) == expected
    onnx.checker.check_model(result)
    assert opened(result) is result


def test_nodes_that_could_stay_do():
    text = "{ b = Tanh(x) a = Relu(y) y = Exp(x) c = Neg(b) d = Neg(a) }"
    model = parse(f"m (float[4] x) => (float[4] d) {text}")
    assert [n.op_type for n in opened(model).graph.node] == ["Tanh", "Exp", "Relu", "Neg", "Neg"]


def test_a_dimension_of_minus_one_is_open():
    model = plain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    result = opened(model)
    first, second = result.graph.input[0].type.tensor_type.shape.dim
    assert first.WhichOneof("value") is None
    assert second.dim_value == 4
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == -1


def test_names_that_are_not_utf8_in_memory():
    model = onnx.load_model_from_string(MODEL.replace(b"Tanh", b"T\xffnh"))
    with pytest.raises(ValueError, match="is not UTF-8"):
        opened(model)


def test_names_in_errors_cannot_write_on_the_terminal():
    model = with_node(helper.make_node("Relu", ["\x1b[2Jq\n"], ["b"]))
    with pytest.raises(ValueError, match=r"reads '\\x1b\[2Jq\\n'") as caught:
        opened(model)
    assert str(caught.value).isprintable()


def test_functions_at_the_limit():
    """2 * 10^5 nodes ten times are too many, once they are not."""
    assert opened(laughs(6))
    monkey = laughs(7)
    assert len(monkey.functions) == 7
    assert opened(monkey)
    monkey.graph.node.extend(call("f6", f"z{i}") for i in range(2))
    with pytest.raises(ValueError, match="the model has 2000000 nodes or more"):
        opened(monkey)


def test_nodes_at_the_limit(monkeypatch):
    model = plain()
    monkeypatch.setattr(nodes, "MOST_WRITTEN", 3)
    assert opened(model) is model
    model.graph.node.append(helper.make_node("Relu", ["x"], ["b"]))
    with pytest.raises(ValueError, match="3 nodes or more"):
        opened(model)


def test_what_holds_a_model():
    model = plain()
    graph = graphopt.update_graph(graphopt.RMSProp([graphopt.Parameter("w", (3,))]))
    assert opened(graph) is graph.model
    assert opened(model) is model
    assert opened(ir.from_proto(model)).graph.node[1].op_type == "Tanh"


def graphs_of(name, folder):
    """Every kind of file that is made of a network."""
    model, loss = ZOO[name].build(), ZOO[name].loss
    parameters = graphopt.parameters(model)
    half = len(parameters) // 2
    rate = graphopt.schedules.CosineDecayLR(0.0, 0.1, 100)
    grouped = graphopt.RMSProp(
        [{"params": parameters[:half], "lr": rate}, {"params": parameters[half:]}],
        learning_rate=0.01, momentum=0.9, centered=True,
    )  # fmt: skip
    simple = graphopt.RMSProp(parameters, learning_rate=0.01)
    onnx.save(model, folder / "forward.onnx")
    for layout in ("auto", "separate"):
        graph = graphopt.training_graph(model, loss, grouped, layout=layout)
        graph.save(folder / f"{layout}.onnx")
    graphopt.update_graph(grouped).save(folder / "update.onnx")
    graphopt.export_on_device(model, loss, grouped, folder / "device")
    graphopt.export_on_device(model, loss, simple, folder / "adamw", optimizer_model=True)
    return sorted(folder.rglob("*.onnx"))


@pytest.mark.quick
@pytest.mark.parametrize("name", ["digits_cnn", "mobilenet_v3", "language_model", "lstm"])
def test_real_graphs_open_as_they_are(name, tmp_path):
    paths = graphs_of(name, tmp_path)
    assert len(paths) == 9
    for path in paths:
        assert opened(path) == without_seal(onnx.load(path))


@pytest.mark.usefixtures("one_registry")
@pytest.mark.parametrize("optimize", [True, False])
def test_exports_of_pytorch_open_as_they_are(optimize, tmp_path):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.GELU(), torch.nn.Flatten(),
        torch.nn.Linear(144, 8), torch.nn.LayerNorm(8),
    ).train()  # fmt: skip
    with silence():
        program = torch.onnx.export(
            network, (torch.randn(2, 3, 8, 8),), dynamo=True, verbose=False, optimize=optimize
        )
    path = tmp_path / "export.onnx"
    onnx.save(program.model_proto, path)
    assert opened(path) == program.model_proto
    program.save(path, external_data=True)
    apart = opened(path)
    assert "export.onnx.data" in {location(t) for t in apart.graph.initializer}


NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**40, -(2**63), 2**63 - 1]


def changed_field(model, rng):
    """The same model with a field somewhere that is gone, there twice or something else."""
    message = model
    while True:
        field, value = rng.choice(message.ListFields())
        inner = value if not field.is_repeated else rng.choice(value)
        if not (hasattr(inner, "ListFields") and inner.ListFields()) or rng.random() < 0.1:
            break
        message = inner
    kind = rng.randrange(4)
    if kind == 0:
        message.ClearField(field.name)
    elif field.is_repeated and kind == 1:
        value.append(inner)
    elif field.is_repeated and kind == 2:
        value.extend([value.pop(0)])
    elif isinstance(inner, int):
        new = rng.choice(NUMBERS)
        with contextlib.suppress(ValueError):  # out of range of the field
            if field.is_repeated:
                value[0] = new
            else:
                setattr(message, field.name, new)
    elif isinstance(inner, str | bytes) and not field.is_repeated:
        names = [inner[:-1], inner * 2, inner[:0], inner[:1]]
        setattr(message, field.name, rng.choice(names))
    return model


def damaged(data, rng):
    """The same bytes with some other ones, more or fewer, or the model with another field."""
    if rng.random() < 0.5:
        model = onnx.load_model_from_string(data)
        for _ in range(rng.choice([1, 1, 2, 5])):
            changed_field(model, rng)
        return model.SerializeToString()
    data = bytearray(data)
    kind = rng.randrange(5)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 3:
            del data[at : at + rng.randrange(1, 9)]
        else:
            other = rng.randrange(len(data))
            length = rng.randrange(1, 200)
            data[at : at + length] = data[other : other + length]
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


@pytest.fixture(scope="module")
def small_files(tmp_path_factory):
    """Files whose bytes are mostly structure, not values."""
    folder = tmp_path_factory.mktemp("graphs")
    files = [onnx.load(path) for path in graphs_of("mlp", folder)]
    for model in files:
        for stored in model.graph.initializer:
            if len(stored.raw_data) > 64:
                stored.ClearField("raw_data")
        for info in model.training_info:
            for stored in info.initialization.initializer:
                if len(stored.raw_data) > 64:
                    stored.ClearField("raw_data")
        for entry in model.metadata_props:
            if entry.key == "graphopt.forward":
                entry.value = ""
    return [model.SerializeToString() for model in (*files, mixed_up()[0], external("w.bin"))]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_real_graphs_open_or_are_refused(small_files, seed, tmp_path):
    rng = random.Random(seed)
    path = tmp_path / "fuzz.onnx"
    opens = 0
    for _ in range(150):
        path.write_bytes(damaged(rng.choice(small_files), rng))
        model, error = outcome(path)
        if model is None:
            assert error.startswith(f"'{path}' is no readable ONNX model: ")
            assert error.isprintable()
        else:
            opens += 1
            assert opened(model) is model  # it can be relied on
    assert 10 < opens < 140
