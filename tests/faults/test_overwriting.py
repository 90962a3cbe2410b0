"""Nothing that is read is overwritten, by whatever path it is called, and nothing is run first."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphopt
from graphopt import RMSProp
from tests.helpers.command_line import run

pytestmark = pytest.mark.any_runtime

FORWARD = """<ir_version: 8, opset_import: ["": 17]>
    m (float[N,3] x) => (float[N,2] y) { y = MatMul (x, w) }"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """All that commands read, under several names; the current folder."""
    monkeypatch.chdir(tmp_path)
    model = onnx.parser.parse_model(FORWARD)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 2), "f"), "w"))
    onnx.save(model, "f.onnx", save_as_external_data=True, location="f.data", size_threshold=0)
    graph = graphopt.training_graph("f.onnx", "mse", RMSProp(graphopt.parameters("f.onnx")))
    graph.save("t.onnx")
    graphopt.Session("t.onnx").save_checkpoint("c.safetensors")
    np.savez("d.npz", x=np.ones((4, 3), "f"), labels=np.ones((4, 2), "f"))
    Path("sub").mkdir()
    for name in ("f.onnx", "f.data", "t.onnx", "c.safetensors", "d.npz"):
        os.link(name, f"hard-{name}")
        Path(f"soft-{name}").symlink_to(name)
        Path("sub", f"soft-{name}").symlink_to(Path("..", f"soft-{name}"))
    return tmp_path


def contents(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


TRAIN = ("train", "t.onnx", "--data", "d.npz", "--epochs", "1")
BUILD = ("build", "f.onnx", "--loss", "mse", "-o")
EXPORT = ("export", "t.onnx", "--checkpoint", "c.safetensors", "-o")
COMMANDS = [
    (TRAIN, "--checkpoint", "t.onnx"),
    (TRAIN, "--checkpoint", "d.npz"),
    (TRAIN, "--export", "t.onnx"),
    (TRAIN, "--export", "d.npz"),
    ((*TRAIN, "--resume", "c.safetensors"), "--export", "c.safetensors"),
    (BUILD, "", "f.onnx"),
    (BUILD, "", "f.data"),
    (EXPORT, "", "t.onnx"),
    (EXPORT, "", "c.safetensors"),
    (("profile", "t.onnx", "--steps", "1"), "--json", "t.onnx"),
    (("profile", "t.onnx", "--steps", "1", "--data", "d.npz"), "--json", "d.npz"),
    (("inspect", "t.onnx"), "--html", "t.onnx"),
    (("inspect", "f.onnx"), "--html", "f.onnx"),
    (("inspect", "c.safetensors", "--graph", "t.onnx"), "--html", "t.onnx"),
]
WAYS = ["{}", "./sub/../{}", "hard-{}", "soft-{}", "sub/soft-{}", "ABSOLUTE/{}"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("arguments", "option", "target"), COMMANDS)
def test_command_over_its_input(arguments, option, target, way, folder):
    path = way.format(target).replace("ABSOLUTE", str(folder))
    before = contents(folder)
    result = run(*arguments, *filter(None, [option]), path)
    assert result.exit_code != 0
    assert "write to another file" in result.output
    assert str(Path(path)) in result.output
    assert contents(folder) == before


@pytest.mark.parametrize("second", ["out", "./sub/../out", "link", "DIR/out"])
def test_two_outputs_of_one_name(second, folder):
    Path("link").symlink_to("out")
    before = contents(folder)
    path = second.replace("DIR", str(folder))
    result = run(*TRAIN, "--checkpoint", "out", "--export", path)
    assert result.exit_code != 0
    assert "which is written too; write to another file" in result.output
    assert contents(folder) == before


@pytest.mark.usefixtures("folder")
@pytest.mark.quick
def test_a_checkpoint_is_resumed_and_written():
    """It is what a run goes on from, and then what it has come to."""
    options = ("--resume", "c.safetensors", "--checkpoint", "c.safetensors")
    result = run(*TRAIN, *options)
    assert result.exit_code == 0, result.output
    session = graphopt.Session("t.onnx")
    session.load_checkpoint("c.safetensors")
    assert session.state["global_step"] == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("target", ["f.onnx", "f.data"])
def test_graph_over_the_model_that_it_was_built_from(target, way, folder):
    path = way.format(target).replace("ABSOLUTE", str(folder))
    optimizer = RMSProp(graphopt.parameters("f.onnx"))
    graph = graphopt.training_graph("f.onnx", "mse", optimizer)
    session = graphopt.Session(graph)
    before = contents(folder)
    for call in (graph.save, session.save_checkpoint, session.export):
        with pytest.raises(ValueError, match="which is read; write to another file"):
            call(path)
    assert contents(folder) == before


def test_checkpoint_and_model_over_the_training_graph(folder):
    session = graphopt.Session("t.onnx")
    before = contents(folder)
    for call in (session.save_checkpoint, session.export):
        with pytest.raises(ValueError, match="which is read; write to another file"):
            call("hard-t.onnx")
    assert contents(folder) == before
    graph = graphopt.load("t.onnx")
    graph.save("t.onnx")  # the same thing, whole
    assert graphopt.load("t.onnx").model == graph.model


def test_on_device_over_its_model(folder):
    Path("device").mkdir()
    model = onnx.parser.parse_model(FORWARD)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3, 2), "f"), "w"))
    onnx.save(model, "device/eval_model.onnx")
    before = contents(folder)
    with pytest.raises(ValueError, match=r"eval_model\.onnx.*which is read"):
        graphopt.export_on_device(
            "device/eval_model.onnx", "mse", RMSProp(graphopt.parameters(model)), "device"
        )
    assert contents(folder) == before
