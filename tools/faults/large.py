"""What a large model takes: ``python -m tools.faults.large --gib 3``.

A network of square matrices, whose values are in a file beside it, is built, saved, loaded,
trained, saved, resumed, exported and inspected, by the calls and by the commands, each in a process
of its own. The table says what each took at most, beyond what it takes to import all, and how often
that is the size of the weights, and of the state: weights and mean squares.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import graphopt
from graphopt import RMSProp
from graphopt._memory import give_back_memory
from graphopt.graph import TrainingGraph
from tools.bench.memory import resident

_LAYERS = 12
_BATCH = 2
_GIB = 2**30


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=3.0, help="size of the weights")
    parser.add_argument("--folder", type=Path, help="a folder for the files, on a disk with room")
    parser.add_argument("--only", default="", help="only what has this in its name")
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        print(json.dumps(peak_of(options.phase, options.folder)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        weights = write_model(folder, options.gib)
        print(f"{_LAYERS} matrices, {weights / _GIB:.2f} GiB; state {2 * weights / _GIB:.2f} GiB")
        print("| | peak, GiB | of the weights | of the state | seconds |\n|---|---|---|---|---|")
        for phase in PHASES:
            if options.only in phase:
                peak, seconds = measured(phase, folder)
                print(
                    f"| {phase} | {peak / _GIB:.2f} | {peak / weights:.2f} | "
                    f"{peak / weights / 2:.2f} | {seconds:.0f} |",
                    flush=True,
                )


def measured(phase: str, folder: Path) -> tuple[int, float]:
    """The bytes that something takes at most in a process of its own, and the seconds."""
    command = [
        sys.executable,
        "-m",
        "tools.faults.large",
        "--phase",
        phase,
        "--folder",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{phase} ended with {done.returncode}: {done.stdout}{done.stderr}")
    peak, seconds = json.loads(done.stdout.splitlines()[-1])
    return peak, seconds


def peak_of(phase: str, folder: Path) -> tuple[int, float]:
    """The same, in this process."""
    from graphopt import _runtime, cli

    _runtime.onnxruntime()
    assert cli
    os.chdir(folder)
    give_back_memory()
    before, start = resident("VmRSS"), time.monotonic()
    PHASES[phase]()
    return resident("VmHWM") - before, time.monotonic() - start


def write_model(folder: Path, gib: float) -> int:
    """Write the network, matrix by matrix, and samples; the bytes of its weights."""
    width = math.isqrt(int(gib * _GIB / 4 / _LAYERS))
    rng = np.random.default_rng(0)
    names = [f"w{index}" for index in range(_LAYERS)]
    block = rng.normal(size=(width, width)).astype(np.float32) / np.float32(math.sqrt(width))
    tensors: list[TensorProto] = []
    with (folder / "model.onnx.data").open("wb") as file:
        for name in names:
            tensor = TensorProto(name=name, dims=block.shape, data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": "model.onnx.data", "offset": file.tell(), "length": block.nbytes}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
            file.write(np.roll(block, len(tensors)).data)
            tensors.append(tensor)
    nodes, value = [], "x"
    for name in names:
        nodes += [helper.make_node("MatMul", [value, name], [f"{name}_product"])]
        nodes += [helper.make_node("Tanh", [f"{name}_product"], [f"{name}_out"])]
        value = f"{name}_out"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])]
    outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", width])]
    graph = helper.make_graph(nodes, "large", inputs, outputs, tensors)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[opset]), folder / "model.onnx")
    x = rng.normal(size=(3 * _BATCH, width)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, labels=np.tanh(x[:, ::-1]))
    return _LAYERS * block.nbytes


def _build() -> TrainingGraph:
    optimizer = RMSProp(graphopt.parameters("model.onnx"), learning_rate=1e-3)
    return graphopt.training_graph("model.onnx", "mse", optimizer)


def _command(*arguments: str) -> Callable[[], None]:
    def run() -> None:
        from graphopt.cli import app

        app(list(arguments), standalone_mode=False)

    return run


def _trained(steps: int) -> graphopt.Session:
    session = graphopt.Session("train.onnx")
    with np.load("data.npz") as data:
        feeds = {name: data[name][:_BATCH] for name in data.files}
    for _ in range(steps):
        session.step(feeds, outputs=["loss"])
    return session


def _resume() -> None:
    session = graphopt.Session("train.onnx")
    session.load_checkpoint("checkpoint.safetensors")
    assert session.global_step == 3


PHASES: dict[str, Callable[[], object]] = {
    "parameters": lambda: graphopt.parameters("model.onnx"),
    "training_graph": _build,
    "training_graph, save": lambda: _build().save("train.onnx"),
    "load": lambda: graphopt.load("train.onnx"),
    "load, save": lambda: graphopt.load("train.onnx").save("again.onnx"),
    "Session": lambda: graphopt.Session("train.onnx"),
    "Session, 3 steps": lambda: _trained(3),
    "Session, 3 steps, save_checkpoint": lambda: _trained(3).save_checkpoint(
        "checkpoint.safetensors"
    ),
    "Session, load_checkpoint": _resume,
    "Session, export": lambda: _trained(0).export("exported.onnx"),
    "inspect": lambda: graphopt.inspect("train.onnx"),
    "inspect of a checkpoint": _command("inspect", "checkpoint.safetensors"),
    "graphopt build": _command(
        *("build", "model.onnx", "--loss", "mse", "--learning-rate", "0.001", "-o", "built.onnx")
    ),
    "graphopt inspect": _command("inspect", "train.onnx"),
    "graphopt train, 3 steps": _command(
        *("train", "train.onnx", "--data", "data.npz", "--epochs", "1"),
        *("--batch-size", str(_BATCH), "--checkpoint", "run"),
    ),
    "graphopt train, resumed": _command(
        *("train", "train.onnx", "--data", "data.npz", "--epochs", "2"),
        *("--batch-size", str(_BATCH), "--checkpoint", "run"),
    ),
    "graphopt export": _command(
        *("export", "train.onnx", "--checkpoint", "checkpoint.safetensors", "-o", "out.onnx")
    ),
}
"""What is done, one after the other, with the files of the ones before."""


if __name__ == "__main__":
    main()
