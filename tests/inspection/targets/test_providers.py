"""What execution providers take of a graph, by their documents."""

import onnx
import onnx_ir as ir
import pytest
from onnx import parser

import graphopt
from graphopt import Parameter, RMSProp
from graphopt.inspection.targets import parse_target
from graphopt.inspection.targets.providers import placed, providers
from graphopt.shapes.engine import Shapes
from models.zoo import ZOO

pytestmark = pytest.mark.any_runtime


def elsewhere(key, body, signature="(float[2,3,8,8] x) => (float[2,4,8,8] y)", inits="", opset=17):
    """The nodes of a forward model that a provider leaves to the CPU, with the reasons."""
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> m {signature} <{inits}> {{ {body} }}'
    )
    model = ir.from_proto(proto)
    stages = ["forward"] * len(model.graph)
    return dict(placed(providers()[key], stages, Shapes(model))["forward"].elsewhere)


KERNEL = "float[4,3,1,1] w = {1,2,3,4,5,6,7,8,9,1,2,3}"
CASES = {
    "all of it": ("nnapi", "h = Conv(x, w) y = Relu(h)", {}, {"inits": KERNEL}),
    "an operator that is not listed": (
        "xnnpack",
        "h = Conv(x, w) y = Relu(h)",
        {("Relu", ""): 1},
        {"inits": KERNEL},
    ),
    "a kernel that is trained": (
        "nnapi",
        "y = Conv(x, w)",
        {("Conv", "whose input 1 is no constant"): 1},
        {"signature": "(float[2,3,8,8] x, float[4,3,1,1] w) => (float[2,4,8,8] y)"},
    ),
    "a matrix that is trained": (
        "coreml",
        "y = Gemm(x, w)",
        {("Gemm", "whose input 1 is no constant"): 1},
        {"signature": "(float[2,3] x, float[3,4] w) => (float[2,4] y)"},
    ),
    "one that NNAPI takes transposed": (
        "nnapi",
        "y = Gemm<transB = 1>(x, w)",
        {},
        {"signature": "(float[2,3] x, float[4,3] w) => (float[2,4] y)"},
    ),
    "3-D pooling": (
        "nnapi",
        "y = GlobalMaxPool(x)",
        {("GlobalMaxPool", "of rank 5"): 1},
        {"signature": "(float[2,3,8,8,8] x) => (float[2,3,1,1,1] y)"},
    ),
    "a type": (
        "directml",
        "y = Mul(x, x)",
        {("Mul", "in float64"): 1},
        {"signature": "(double[2] x) => (double[2] y)"},
    ),
    "an open dimension": (
        "qnn",
        "y = Relu(x)",
        {("Relu", "with open dimensions"): 1},
        {"signature": "(float[N] x) => (float[N] y)"},
    ),
    "another axis": (
        "xnnpack",
        "y = Softmax<axis = 0>(x)",
        {("Softmax", "along another axis than the last"): 1},
        {"signature": "(float[2,3] x) => (float[2,3] y)"},
    ),
    "an opset": (
        "migraphx",
        "y = Relu(x)",
        {("Relu", "opset 20"): 1},
        {"signature": "(float[2] x) => (float[2] y)", "opset": 20},
    ),
    "what ONNX Runtime reads as another": (
        "openvino",
        "y = CastLike(x, z)",
        {},
        {"signature": "(float[2] x, int64[1] z) => (int64[2] y)"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_falls_back(case):
    key, body, expected, given = CASES[case]
    assert elsewhere(key, body, **given) == expected


def test_many_nodes_that_it_lacks():
    body = "".join(f"h{at} = {'Det' if at % 2 else 'Relu'}(x) " for at in range(24)) + "y = Abs(x)"
    signature = "(float[1,2,2] x) => (float[1,2,2] y)"
    found = elsewhere("migraphx", body, signature)
    assert found == {("Det", ""): 12, ("all other nodes", "more than 10 others"): 13}


@pytest.mark.parametrize("key", providers())
def test_the_files_name_operators_and_their_source(key):
    found = providers()[key]
    assert found.provider.endswith("ExecutionProvider")
    assert found.source
    assert found.dated
    names = {name for name in found.operators if not onnx.defs.has(name)}
    assert not names
    allowed = {"constant", "unless", "rank", "dtypes", "only", "last_axis"}
    assert {key for rule in found.operators.values() for key in rule} <= allowed


def test_a_training_graph_stage_by_stage():
    """Functions are written out: their nodes are those that count."""
    forward = ZOO["digits_cnn"].build()
    optimizer = RMSProp(graphopt.parameters(forward), learning_rate=0.01)
    graph = graphopt.training_graph(forward, "cross_entropy", optimizer, layout="separate")
    found = graphopt.inspect(graph, target="CoreML")
    told = found.targets[-1]
    assert told.name == "CoreML, by its documents"
    assert told.reasons[0] == "from its documents, not measured"
    stages = [reason.partition(":")[0] for reason in told.reasons[1:5]]
    assert stages == ["forward", "loss", "backward", "update"]
    assert "Conv (2), whose input 2 is no constant" in told.reasons[1]
    assert told.reasons[-1].startswith("as said by https://github.com/microsoft/onnxruntime/")
    assert found.hazards == ()


def test_targets_by_name():
    assert parse_target(" OpenVINO-GPU ").provider == "OpenVINOExecutionProvider"
    with pytest.raises(ValueError, match=r"target: got 'rocm', .* the providers coreml, directml"):
        graphopt.inspect(graphopt.update_graph(RMSProp([Parameter("w", (2,))])), target="rocm")
