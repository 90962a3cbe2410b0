"""Operators that run alone give the same numbers here and there, and are those of the graph."""

import json

import numpy as np
import onnx.parser
import pytest

import graphopt
from tools.bench import alone
from tools.bench.alone_calls import Call, calls

pytestmark = pytest.mark.any_runtime

CALLS = {
    "convolution": Call("Conv", (("pads", (1, 1, 1, 1)),), ((2, 3, 5, 5), (4, 3, 3, 3), (4,))),
    "more padding behind": Call(
        "Conv", (("pads", (0, 1, 2, 3)), ("strides", (2, 1))), ((2, 3, 5, 5), (4, 3, 3, 3))
    ),
    "of each channel": Call("Conv", (("group", 3),), ((2, 3, 5, 5), (3, 1, 3, 3))),
    "transposed": Call(
        "ConvTranspose",
        (("output_padding", (1, 1)), ("pads", (1, 1, 1, 1)), ("strides", (2, 2))),
        ((2, 3, 5, 5), (3, 4, 3, 3)),
    ),
    "gemm": Call("Gemm", (("transA", 1), ("transB", 1)), ((3, 4), (5, 3), (5,))),
    "scaled gemm": Call("Gemm", (("alpha", 0.5),), ((4, 3), (3, 5))),
    "matmul": Call("MatMul", (), ((2, 4, 3), (3, 5))),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call_is_the_same_in_both(call):
    one = alone.measured(call, 3, threads=1, rounds=1)  # refuses different numbers
    assert (one.call, one.count) == (call, 3)
    assert min(one.onnxruntime, one.pytorch) > 0


def test_different_numbers_are_refused(monkeypatch):
    monkeypatch.setattr(alone, "in_pytorch", lambda *_: lambda: np.zeros((2, 4, 5), np.float32))
    with pytest.raises(ValueError, match="MatMul 2x4x3 3x5: ONNX Runtime and PyTorch give diff"):
        alone.measured(CALLS["matmul"], 1, threads=1, rounds=1)


def test_the_calls_of_a_step(tmp_path):
    forward = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        network (float[2,3,6,6] x) => (float[2,4] y) {
            c = Conv<auto_pad = "NOTSET", strides = [2, 2]>(x, w)
            m = GlobalAveragePool(c)
            y = Flatten(m)
        }""")
    w = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    forward.graph.initializer.append(w)
    del forward.graph.input[1:]
    path = tmp_path / "train.onnx"
    optimizer = graphopt.RMSProp(graphopt.parameters(forward))
    graphopt.training_graph(forward, "mse", optimizer).save(path)
    feeds = {"x": np.ones((2, 3, 6, 6), np.float32), "labels": np.ones((2, 4), np.float32)}
    found = calls(path, feeds)
    attributes = (("auto_pad", "NOTSET"), ("strides", (2, 2)))
    assert found[Call("Conv", attributes, ((2, 3, 6, 6), (4, 3, 3, 3)))] == 1
    assert all(call.op_type in ("Conv", "Gemm", "MatMul") for call in found)
    assert not list(tmp_path.glob("*.json"))


def test_the_table(tmp_path):
    one, two = (Call("Conv", (("group", g),), ((2, 3), (4, 5))) for g in (1, 3))
    every = [alone.Alone(one, 2, 4.0, 8.0), alone.Alone(two, 5, 2.0, 1.0)]
    assert list(alone.table({"net": every}))[2:] == [
        "| net | 5 of Conv 2x3 4x5 of 3 groups | 10.00 | 5.00 | 2.00 |",
    ]
    alone.save({"net": every}, tmp_path)
    assert "| net | 5 of Conv" in (tmp_path / "alone.md").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "alone.json").read_text(encoding="utf-8"))["net"][1]
    assert (record["count"], record["pytorch"]) == (5, 1)
    assert record["call"]["op_type"] == "Conv"
