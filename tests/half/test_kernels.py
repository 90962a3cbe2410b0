"""ONNX Runtime runs on the CPU what the list says, in float16 and bfloat16, without casts."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from graphopt._runtime import CPU
from graphopt.half.kernels import KERNELS, runs
from graphopt.half.precision import DTYPES
from graphopt.versions import MAX_OPSET

INDICES = {
    "Reshape": [4, 2],
    "Unsqueeze": [0],
    "Squeeze": [0],
    "Expand": [3, 2, 4],
    "Gather": [0],
    "GatherElements": [[0, 0, 0, 0]],
    "GatherND": [[0]],
}


def node_of(op_type):
    """A node, and the int64 initializers that it reads after ``x``."""
    more, attributes, outputs = {}, {}, ["y"]
    if op_type in INDICES:
        more["indices"] = INDICES[op_type]
    if op_type == "Slice":
        more = {"starts": [0], "ends": [1]}
    if op_type == "Split":
        outputs, attributes = ["y", "z"], {"num_outputs": 2}
    if op_type == "Concat":
        attributes = {"axis": 0}
    if op_type == "Cast":
        attributes = {"to": TensorProto.FLOAT}
    return helper.make_node(op_type, ["x", *more], outputs, **attributes), more


def nodes_that_ran(op_type, dtype, tmp_path):
    shape = [1, 4] if op_type == "Squeeze" else [2, 4]
    x = helper.make_tensor_value_info("x", dtype, shape)
    node, more = node_of(op_type)
    if op_type == "ConstantOfShape":
        zero = helper.make_tensor("value", dtype, [1], [0.0])
        x = helper.make_tensor_value_info("x", TensorProto.INT64, [2])
        node = helper.make_node(op_type, ["x"], ["y"], value=zero)
    kind = {"Cast": TensorProto.FLOAT, "Shape": TensorProto.INT64}.get(op_type, dtype)
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in node.output]
    constants = [onnx.numpy_helper.from_array(np.array(v), name) for name, v in more.items()]
    model = helper.make_model(
        helper.make_graph([node], "g", [x], outputs, constants),
        opset_imports=[helper.make_opsetid("", MAX_OPSET)],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "ran.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    return [node.op_type for node in onnx.load(tmp_path / "ran.onnx").graph.node]


@pytest.mark.parametrize("precision", DTYPES)
def test_the_cpu_has_the_kernels(precision, tmp_path):
    half = DTYPES[precision]
    for op_type in sorted(KERNELS[CPU, half]):
        assert nodes_that_ran(op_type, int(half), tmp_path) == [op_type]


@pytest.mark.any_runtime
@pytest.mark.parametrize(
    ("op_type", "precision", "provider", "expected"),
    [
        ("MatMul", "float16", CPU, False),
        ("Transpose", "bfloat16", CPU, True),
        ("MatMul", "bfloat16", "CUDAExecutionProvider", True),
        ("Conv", "float16", "CUDAExecutionProvider", True),
        ("Where", "bfloat16", "CUDAExecutionProvider", True),
        ("Greater", "float16", "CUDAExecutionProvider", True),
        ("Greater", "bfloat16", "CUDAExecutionProvider", False),
        ("MaxPool", "bfloat16", "CUDAExecutionProvider", False),
        ("Tile", "float16", CPU, False),
        ("Conv", "bfloat16", "CUDAExecutionProvider", False),  # ONNX allows it from opset 22 on
        ("ConstantOfShape", "bfloat16", CPU, True),
    ],
)
def test_what_runs(op_type, precision, provider, expected):
    node = ir.node(op_type, [ir.val("x")])
    assert runs(node, DTYPES[precision], provider, MAX_OPSET) == expected


@pytest.mark.any_runtime
def test_bfloat16_constants_need_an_opset():
    node = ir.node("ConstantOfShape", [ir.val("x")])
    assert not runs(node, DTYPES["bfloat16"], CPU, 17)
