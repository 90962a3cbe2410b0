"""What pages have for a terminal, beside those that have a test of their own: each command runs."""

import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import graphopt
from graphopt.examples import digits, digits_cnn
from tests.helpers import command_line, node
from tests.helpers.documents import blocks
from tests.helpers.folders import DOCS, JAVASCRIPT, ROOT

pytestmark = pytest.mark.any_runtime

CPP = ROOT / "graphopt" / "examples" / "cpp"
LIKE_TORCH = {
    "decay": 0.99,
    "epsilon": 1e-8,
    "epsilon_inside_root": False,
    "initial_mean_square": 0.0,
    "learning_rate_inside_moment": False,
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder, with the network and the data that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    onnx.save(digits_cnn.build(), "model.onnx")
    np.savez("digits.npz", **{k: v[:96] for k, v in digits.load().train._asdict().items()})
    return tmp_path


def build(file="train.onnx", **hyperparameters):
    optimizer = graphopt.RMSProp(
        graphopt.parameters("model.onnx"), momentum=0.9, learning_rate=0.002, **hyperparameters
    )
    graph = graphopt.training_graph("model.onnx", loss="cross_entropy", optimizer=optimizer)
    graph.save(file)
    return graphopt.Session(graph)


def commands(page):
    """Each line of its blocks, as words."""
    lines = [
        line for block in blocks("console", page.read_text("utf-8")) for line in block.splitlines()
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(page, count):
    """All its commands, which are of graphopt."""
    found = commands(DOCS / f"{page}.md")
    assert len(found) == count
    for program, *arguments in found:
        assert program == "graphopt"
        command_line.succeed(*arguments)


def test_checkpoints():
    session = build(**LIKE_TORCH)
    names = [parameter.name for parameter in graphopt.parameters("model.onnx")]
    session.step({key: value[:32] for key, value in digits.load().train._asdict().items()})
    graphopt.conversion.save_state(session, "there.pt", "torch", names=names)
    Path("names.txt").write_text("\n".join(names), encoding="utf-8")
    run("checkpoints", 3)
    assert Path("state.safetensors").is_file()


def test_stability():
    build()
    run("stability", 3)
    assert Path("average.onnx").is_file()


def test_speed():
    build()
    run("speed", 2)
    assert Path("profile.json").is_file()


def test_providers():
    build()
    run("providers", 1)


def test_tutorial_of_a_colleague():
    build()
    build("other.onnx", epsilon=1.0)
    run("tutorial_colleague", 5)
    assert Path("train.html").is_file()


def test_javascript():
    """What Node and the pages do is shown by tests/examples; here it is their files."""
    make, enter, install, *programs, serve, export = commands(DOCS / "javascript.md")
    assert commands(JAVASCRIPT / "README.md") == [install, *programs, serve]
    command_line.succeed(*make[1:])
    assert enter == ["cd", "javascript"]
    assert install == ["npm", "ci", "--ignore-scripts"]  # as tests/helpers/node.py does
    assert programs == [
        ["node", "node.mjs"],
        ["node", "node.mjs", "10", "onnxruntime-web"],
        ["node", "node.mjs", "10", "on-device"],
    ]
    text = (DOCS / "javascript.md").read_text("utf-8")
    assert serve == ["python", "-m", "http.server", "--bind", "127.0.0.1"]
    for page in ("index.html", "webgpu.html", "on_device.html"):
        assert f"#   /{page}" in text
        assert Path("javascript", page).is_file()
    graph = Path("javascript/build/train.onnx")
    graphopt.Session(graph).save_checkpoint(graph.with_name("checkpoint.safetensors"))
    arguments = [str(Path("javascript", word)) if "build/" in word else word for word in export]
    command_line.succeed(*arguments[1:])
    assert Path("trained.onnx").is_file()


def test_javascript_of_ones_own(folder):
    """The first snippet trains in Node, and the second differs from it by what is imported."""
    first, second = blocks("js", (DOCS / "javascript.md").read_text("utf-8"))
    session = build()
    for file in JAVASCRIPT.glob("*.mjs"):
        shutil.copy(file, folder)
    (folder / "node_modules").symlink_to(node.packages())
    data = digits.load().train
    x, labels = data.x[:32], data.labels[:32]
    batches = f"""
const batches = [{{
  x: new ort.Tensor("float32", Float32Array.from({x.ravel().tolist()}), {list(x.shape)}),
  labels: new ort.Tensor("int64", BigInt64Array.from({labels.tolist()}.map(BigInt)), [32]),
}}];
"""
    imports, loop = first.split("\n\n")
    (folder / "own.mjs").write_text(f"{imports}\n{batches}\n{loop}", encoding="utf-8")
    done = subprocess.run([node.executable(), "own.mjs"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    session.step({"x": x, "labels": labels})
    other = graphopt.Session("train.onnx")
    other.load_checkpoint("checkpoint.safetensors")
    for name, value in session.state.items():
        np.testing.assert_allclose(other.state[name], value, atol=1e-5, err_msg=name)
    web, _, load = second.strip().splitlines()
    assert web == 'import * as ort from "onnxruntime-web/webgpu";'
    assert load.startswith("const trainer = await Trainer.load(ort, bytes, ")
    assert 'executionProviders: ["webgpu"]' in load  # which tests/examples runs in Chromium


@pytest.mark.exhaustive  # it takes seconds to compile
def test_cpp(folder):
    """From the folder of the sources to a state: what is built, compiled and run there."""
    text = (CPP / "README.md").read_text("utf-8")
    (python,) = blocks("python", text)
    (shell,) = blocks("sh", text)
    ((_, *make),) = commands(CPP / "README.md")
    command_line.succeed(*make)
    exec(compile(python, "README.md", "exec"), {})
    found = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if shutil.which("c++") is None or not found:
        pytest.skip("NOT RUN: there is no C++ compiler, or no libonnxruntime.so in the package")
    for source in CPP.iterdir():
        shutil.copy(source, folder)
    library = folder / "ort" / "lib"
    library.mkdir(parents=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (library / name).symlink_to(found[0])
    done = subprocess.run(
        ["bash", "-e", "-c", shell],
        env={"ORT": str(folder / "ort"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with pytest.warns(UserWarning, match="no checksums"):
        graphopt.Session("train.onnx").load_checkpoint("state.safetensors")
