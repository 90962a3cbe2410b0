"""No memory for what is to be written: the error names the file, and what was there stays."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import RMSProp, conversion
from tests.helpers.command_line import run
from tests.helpers.faults import contents, failing

pytestmark = pytest.mark.any_runtime


def exhausted(*_, **__):
    raise MemoryError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a forward model, its training graph and older files."""
    monkeypatch.chdir(tmp_path)
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N,64] x) => (float[N,8] y) { y = MatMul (x, w) }""")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 8), "f"), "w"))
    onnx.save(model, "f.onnx")
    graph_of(0.1).save("t.onnx")
    graphopt.Session("t.onnx").save_checkpoint("c.safetensors")
    graphopt.Session("t.onnx").save_checkpoint("d.safetensors")
    (tmp_path / "out").write_bytes(b"old")
    export_on_device()
    return tmp_path


def optimizer_of(learning_rate):
    return RMSProp(graphopt.parameters("f.onnx"), learning_rate=learning_rate)


def graph_of(learning_rate):
    return graphopt.training_graph("f.onnx", "mse", optimizer_of(learning_rate))


def export_on_device():
    graphopt.export_on_device("f.onnx", "mse", optimizer_of(0.1), "device")


CALLS = {
    "save": lambda: graphopt.load("t.onnx").save("out"),
    "save_checkpoint": lambda: graphopt.Session("t.onnx").save_checkpoint("out"),
    "export": lambda: graphopt.Session("t.onnx").export("out"),
    "save_state, timm": lambda: conversion.save_state(graphopt.Session("t.onnx"), "out", "timm"),
    "save_state, mindspore": lambda: conversion.save_state(
        graphopt.Session("t.onnx"), "out", "mindspore"
    ),
    "average_checkpoints": lambda: graphopt.average_checkpoints(
        ["c.safetensors", "d.safetensors"], "out"
    ),
    "export_on_device": export_on_device,
}


@pytest.mark.parametrize("name", CALLS)
def test_at_each_operation_on_a_file(name, folder):
    """What takes memory while a file is written is asked for between these."""
    before = contents(folder)
    with failing(None) as operations:
        CALLS[name]()
    after = contents(folder)
    reached = 0
    for at in range(len(operations)):
        restore(folder, before)
        try:
            with failing(at, fail=exhausted):
                CALLS[name]()
        except MemoryError as error:
            reached += 1
            wanted = ("'device", "'f.onnx") if name == "export_on_device" else ("'out'", ".onnx'")
            assert any(text in str(error) for text in wanted), (at, str(error))  # noqa: PT017
            assert ".graphopt-" not in str(error)  # noqa: PT017
        # What could not be removed is, by the next one that writes there.
        found = {path: data for path, data in contents(folder).items() if ".graphopt-" not in path}
        assert found.keys() <= {*before, *after}, at
        assert before.items() <= {**found, "out": b"old"}.items() or name == "export_on_device"
        # Archives have the time in them.
        assert found["out"] == b"old" or len(found["out"]) == len(after["out"])
    assert reached >= 3


BEFORE = [
    ("save", "graphopt.large_models._parts_of"),
    ("save_checkpoint", "graphopt.checkpoint.file._metadata"),
    ("save_checkpoint", "graphopt.session.check_finite"),
    ("export", "graphopt.large_models._parts_of"),
    ("export", "graphopt.session.inference_model"),
    ("save_state, timm", "graphopt.conversion._torch_file.pickled"),
    ("save_state, timm", "graphopt.conversion._save.check_finite"),
    ("save_state, mindspore", "graphopt.conversion._mindspore_file._field"),
    ("average_checkpoints", "graphopt.checkpoint_average._check"),
    ("average_checkpoints", "graphopt.checkpoint.file.header"),
    ("export_on_device", "graphopt.on_device._export.eval_model"),
    ("export_on_device", "graphopt.on_device._export._checkpoint"),
    ("export_on_device", "graphopt.on_device.checkpoint.laid_out"),
    ("export_on_device", "graphopt.large_models._parts_of"),
    ("export_on_device", "graphopt.on_device._export._describe"),
    ("command inspect", "graphopt.inspection.commands.page"),
    ("command profile", "graphopt.command_line.profile.json.dumps"),
    ("command build", "graphopt.large_models._parts_of"),
    ("command train", "graphopt.checkpoint.file._metadata"),
]
"""What takes memory before a file is opened, or between two operations on it."""

COMMANDS = {
    "command inspect": ("inspect", "t.onnx", "--html", "out"),
    "command profile": ("profile", "t.onnx", "--steps", "1", "--json", "out"),
    "command build": ("build", "f.onnx", "--loss", "mse", "-o", "out"),
    "command train": ("train", "t.onnx", "--data", "d.npz", "--epochs", "1", "--checkpoint", "run"),
}


@pytest.mark.parametrize(("name", "where"), BEFORE)
def test_before_and_between(name, where, folder, monkeypatch):
    np.savez("d.npz", x=np.ones((4, 64), "f"), labels=np.ones((4, 8), "f"))
    before = contents(folder)
    monkeypatch.setattr(where, exhausted)
    if name in COMMANDS:
        result = run(*COMMANDS[name])
        assert result.exit_code == 1
        message = " ".join(result.output.split())
        assert "error: cannot write " in message
    else:
        with pytest.raises(MemoryError) as caught:
            CALLS[name]()
        message = str(caught.value)
    wanted = {"export_on_device": "device", "command train": "run/step-"}.get(name, "out")
    assert f"cannot write '{wanted}" in message
    assert "there is not enough memory" in message
    assert ".graphopt-" not in message
    assert contents(folder) == before


def restore(folder, files):
    for path in contents(folder):
        (folder / path).unlink()
    for path, content in files.items():
        (folder / path).write_bytes(content)
