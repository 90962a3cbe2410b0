"""What building a training graph and writing it takes at most, in a process of its own.

``python -m tests.helpers.build_peak model.onnx path`` prints the peak in bytes beyond what was
resident before, with all libraries loaded; with "proto" in place of "path", the model is given in
memory.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import graphopt
from graphopt.forward import read_proto
from tools.bench.memory import resident

LAYERS, SIZE = 12, 1000
WEIGHTS = LAYERS * SIZE * SIZE * 4
"""Bytes: less than what is left in a file."""


def write(path: Path) -> None:
    """A model of square matrices, which are in its file."""
    rng = np.random.default_rng(0)
    names = [f"w{index}" for index in range(LAYERS)]
    values = ["x", *(f"h{index}" for index in range(LAYERS - 1)), "y"]
    nodes = [
        helper.make_node("MatMul", [before, name], [after])
        for before, name, after in zip(values, names, values[1:], strict=False)
    ]
    weights = [
        onnx.numpy_helper.from_array(rng.normal(size=(SIZE, SIZE)).astype(np.float32), name)
        for name in names
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", SIZE]) for n in "xy")
    graph = helper.make_graph(nodes, "matrices", [x], [y], weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opsets), path)


def build(model: object, to: Path) -> None:
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    graphopt.training_graph(model, "mse", optimizer).save(to)


def main(path: Path, how: str) -> None:
    small = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        m (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 2}> { y = MatMul (x, w) }""")
    build(small, path.with_name("small.onnx"))
    model = read_proto(path) if how == "proto" else path
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident
    before = resident("VmRSS")
    build(model, path.with_name("train.onnx"))
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
