"""Shapes, stages, costs, memory and layers of a model that is not run."""

import random
from collections import Counter
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, parser

import graphopt
from graphopt.graphs import proto_nodes
from graphopt.inspection.costs import memory, operations
from graphopt.inspection.facts import StageFacts
from graphopt.inspection.structure import layers, stages
from graphopt.shapes import engine
from graphopt.shapes.engine import open_dimensions
from graphopt.shapes.values import LARGEST, TensorInfo
from graphopt.stage import STAGES
from models.zoo import ZOO
from tests.helpers.environments import needs_training_package
from tests.helpers.zoo import zoo_graph

pytestmark = pytest.mark.any_runtime

HEADER = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'
BATCH = 3


def model_of(text, header=HEADER):
    return parser.parse_model(f"{header}\n{text}")


@cache
def digits_of(kind, folder):
    """The training model of on-device training of the digits network."""
    forward = ZOO["digits_cnn"].build()
    optimizer = graphopt.RMSProp(graphopt.parameters(forward), learning_rate=0.01)
    files = graphopt.export_on_device(
        forward, "cross_entropy", optimizer, folder / kind, optimizer_model=kind == "native"
    )
    return onnx.load(files.training_model)


def infer(model, sizes):
    return engine.infer(ir.from_proto(model), sizes)


def sizes_of(model, size=BATCH):
    return dict.fromkeys(open_dimensions(ir.from_proto(model)), size)


def stages_of(model, *, reported=None):
    """The stages, with roles that are known from the names in graphopt's graphs."""
    outputs = [value.name for value in model.graph.output]
    carried = [entry.value for info in model.training_info for entry in info.update_binding]
    gradients = [
        name for node in model.graph.node for name in node.output if name.endswith("_grad")
    ]
    if reported is None:
        reported = [name for name in outputs if name not in (*carried, "loss")]
    loss = [name for name in outputs if name == "loss"]
    return stages.stages_of(
        ir.from_proto(model).graph,
        reported=reported,
        loss=loss,
        gradients=gradients,
        carried=carried,
    )


# Shapes

NODES = {
    "Add": "(float[2,1,3] x, float[4,1] b) => (float y) { y = Add(x, b) }",
    "Where": "(bool[3] x, float[2,1] b, float c) => (float y) { y = Where(x, b, c) }",
    "Greater": "(float[2,1] x, float[3] b) => (bool y) { y = Greater(x, b) }",
    "Cast": "(float[2] x) => (int64 y) { y = Cast<to = 7>(x) }",
    "Shape": "(float[2,3,4] x) => (int64 y) { y = Shape<start = 1, end = -1>(x) }",
    "ConstantOfShape": "(float[2,3] x) => (float y) { s = Shape(x) y = ConstantOfShape(s) }",
    "Range": "(float[5,2] x) => (int64 y) <int64 a = {0}, int64 d = {2}> "
    "{ n = Size(x) y = Range(a, n, d) }",
    "Expand": "(float[3,1] x) => (float y) <int64[3] s = {2,1,4}> { y = Expand(x, s) }",
    "Reshape": "(float[2,3,4] x) => (float y) <int64[3] s = {0,-1,2}> { y = Reshape(x, s) }",
    "Reshape computed": "(float[2,3,4] x) => (float y) <int64[1] m = {-1}, int64 i = {0}> "
    "{ s = Shape(x) a = Gather(s, i) z = Constant<value = int64[1] {0}>() b = Unsqueeze(a, z) "
    "t = Concat<axis = 0>(b, m) y = Reshape(x, t) }",
    "Squeeze": "(float[2,1,3,1] x) => (float y) { y = Squeeze(x) }",
    "Squeeze axes": "(float[2,1,3,1] x) => (float y) <int64[1] a = {-1}> { y = Squeeze(x, a) }",
    "Unsqueeze": "(float[2,3] x) => (float y) <int64[2] a = {0,-1}> { y = Unsqueeze(x, a) }",
    "Flatten": "(float[2,3,4] x) => (float y) { y = Flatten<axis = 2>(x) }",
    "Transpose": "(float[2,3,4] x) => (float y) { y = Transpose<perm = [2,0,1]>(x) }",
    "Transpose reversed": "(float[2,3,4] x) => (float y) { y = Transpose(x) }",
    "Concat": "(float[2,3] x, float[2,4] b) => (float y) { y = Concat<axis = -1>(x, b) }",
    "Split": "(float[2,7] x) => (float y, float z) <int64[2] s = {3,4}> "
    "{ y, z = Split<axis = 1>(x, s) }",
    "Split evenly": "(float[6,2] x) => (float y, float z) { y, z = Split(x) }",
    "Slice": "(float[9,5] x) => (float y) <int64[2] a = {1,-1}, int64[2] b = {8,-99}, "
    "int64[2] c = {0,1}, int64[2] d = {3,-2}> { y = Slice(x, a, b, c, d) }",
    "Gather": "(float[5,3] x) => (float y) <int64[2,2] i = {0,1,2,0}> "
    "{ y = Gather<axis = 1>(x, i) }",
    "GatherElements": "(float[5,3] x) => (float y) <int64[2,3] i = {0,1,2,0,1,2}> "
    "{ y = GatherElements(x, i) }",
    "GatherND": "(float[5,3,2] x) => (float y) <int64[4,1] i = {0,1,2,0}> { y = GatherND(x, i) }",
    "ScatterElements": "(float[5,3] x) => (float y) <int64[1,1] i = {2}, float[1,1] u = {1}> "
    "{ y = ScatterElements(x, i, u) }",
    "Tile": "(float[2,3] x) => (float y) <int64[2] r = {3,2}> { y = Tile(x, r) }",
    "Pad": "(float[2,3] x) => (float y) <int64[4] p = {0,1,2,3}> { y = Pad(x, p) }",
    "OneHot": "(int64[2,3] x) => (float y) <int64 d = {7}, float[2] v = {0,1}> "
    "{ y = OneHot<axis = 1>(x, d, v) }",
    "TopK": "(float[2,5] x) => (float y, int64 z) <int64[1] k = {3}> { y, z = TopK(x, k) }",
    "ReduceSum": "(float[2,3,4] x) => (float y) <int64[2] a = {0,-1}> { y = ReduceSum(x, a) }",
    "ReduceMean": "(float[2,3,4] x) => (float y) { y = ReduceMean<axes = [1], keepdims = 0>(x) }",
    "ReduceMax": "(float[2,3] x) => (float y) { y = ReduceMax<keepdims = 0>(x) }",
    "ArgMax": "(float[2,3] x) => (int64 y) { y = ArgMax<axis = 1, keepdims = 0>(x) }",
    "MatMul": "(float[5,1,2,3] x, float[4,3,6] b) => (float y) { y = MatMul(x, b) }",
    "MatMul vectors": "(float[3] x, float[3] b) => (float y) { y = MatMul(x, b) }",
    "MatMul matrix": "(float[4,2,3] x, float[3] b) => (float y) { y = MatMul(x, b) }",
    "Gemm": "(float[3,2] x, float[5,3] b) => (float y) { y = Gemm<transA = 1, transB = 1>(x, b) }",
    "Einsum": '(float[2,3,4] x, float[2,4,5] b) => (float y) '
    '{ y = Einsum<equation = "bij, bjk -> bik">(x, b) }',
    "Einsum implied": '(float[2,3] x, float[3,4] b) => (float y) '
    '{ y = Einsum<equation = "ij,jk">(x, b) }',
    "Conv": "(float[2,4,9,8] x, float[6,2,3,3] w) => (float y) { y = Conv<group = 2, "
    "strides = [2,1], pads = [1,0,1,2], dilations = [1,2]>(x, w) }",
    "Conv same": '(float[2,4,9,8] x, float[6,4,3,3] w) => (float y) '
    '{ y = Conv<auto_pad = "SAME_UPPER", strides = [2,2]>(x, w) }',
    "ConvTranspose": "(float[2,4,5,6] x, float[4,3,3,2] w) => (float y) { y = ConvTranspose<"
    "group = 2, strides = [2,3], pads = [1,0,0,1], output_padding = [1,0]>(x, w) }",
    "MaxPool": "(float[2,3,9,8] x) => (float y) "
    "{ y = MaxPool<kernel_shape = [3,2], strides = [2,2], pads = [1,0,1,0]>(x) }",
    "MaxPool ceil": "(float[2,3,7,7] x) => (float y) "
    "{ y = MaxPool<kernel_shape = [2,2], strides = [3,2], ceil_mode = 1>(x) }",
    "AveragePool": '(float[2,3,9] x) => (float y) '
    '{ y = AveragePool<kernel_shape = [4], auto_pad = "VALID", strides = [2]>(x) }',
    "GlobalAveragePool": "(float[2,3,9,8] x) => (float y) { y = GlobalAveragePool(x) }",
    "Resize scales": "(float[1,2,5,4] x) => (float y) <float[4] s = {1,1,2.5,2}> "
    "{ y = Resize(x, , s) }",
    "Resize sizes": "(float[1,2,5,4] x) => (float y) <int64[4] s = {1,2,7,3}> "
    "{ y = Resize(x, , , s) }",
    "DepthToSpace": "(float[1,8,2,3] x) => (float y) { y = DepthToSpace<blocksize = 2>(x) }",
    "SpaceToDepth": "(float[1,2,4,6] x) => (float y) { y = SpaceToDepth<blocksize = 2>(x) }",
    "LayerNormalization": "(float[2,3,4] x, float[4] s) => (float y, float m) "
    "{ y, m = LayerNormalization(x, s) }",
    "LSTM": "(float[5,2,3] x, float[1,16,3] w, float[1,16,4] r) => (float y, float h, float c) "
    "{ y, h, c = LSTM<hidden_size = 4>(x, w, r) }",
    "GRU": '(float[5,2,3] x, float[2,12,3] w, float[2,12,4] r) => (float y, float h) '
    '{ y, h = GRU<hidden_size = 4, direction = "bidirectional">(x, w, r) }',
    "SoftmaxCrossEntropyLoss": "(float[4,3] x, int64[4] t) => (float y, float z) "
    "{ y, z = SoftmaxCrossEntropyLoss(x, t) }",
    "Scan": "(float[2,3] x, float[5,3] b) => (float y, float z) { y, z = Scan<num_scan_inputs = 1, "
    "body: graph = g (float[2,3] s, float[3] r) => (float[2,3] t, float[2,3] u) "
    "{ t = Add(s, r) u = Identity(t) }>(x, b) }",
    "Loop": "(float[2,3] x) => (float y, float z) <int64 n = {4}, bool c = {1}> "
    "{ y, z = Loop<body: graph = g (int64 i, bool d, float[2,3] s) => (bool e, float[2,3] t, "
    "float[2,3] u) { e = Identity(d) t = Add(s, s) u = Identity(t) }>(n, c, x) }",
    "If": "(bool x) => (float y) { y = If<then_branch: graph = a () => (float[2,3] p) "
    "{ p = Constant<value = float[2,3] {1,2,3,4,5,6}>() }, else_branch: graph = b () => "
    "(float[2,3] q) { q = Constant<value = float[2,3] {1,2,3,4,5,6}>() }>(x) }",
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("name", NODES)
def test_a_rule_gives_the_shape_that_running_gives(name):
    model = model_of(f"g {NODES[name]}")
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    expected = run(model)
    found = infer(model, {})
    assert {value: described(found.of(value)) for value in expected} == expected


def run(model, feeds=None):
    """The dtype and shape of each output."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    if feeds is None:
        feeds = {
            value.name: np.ones(
                [dim.dim_value for dim in value.type.tensor_type.shape.dim],
                helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
            )
            for value in model.graph.input
        }
    names = [value.name for value in session.get_outputs()]
    results = zip(names, session.run(names, feeds), strict=True)
    return {name: (result.dtype.name, result.shape) for name, result in results}


def described(info):
    return helper.tensor_dtype_to_np_dtype(info.dtype).name, info.shape


@pytest.mark.parametrize("name", ZOO)
def test_shapes_of_a_training_graph_are_those_of_a_step(name):
    graph = zoo_graph(name)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    found = bare_shapes(model)
    feeds = ZOO[name].feeds(np.random.default_rng(0), BATCH)
    for value in graph.carried:
        initial = value.initial
        shape, dtype = value.shape, value.dtype
        feeds[value.input] = (
            initial.reshape(shape)
            if isinstance(initial, np.ndarray)
            else np.full(shape, initial, dtype)
        )
    known = {value.name for value in model.graph.output}
    wanted = [n for node in model.graph.node for n in node.output if n and n not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    measured = run(model, feeds)
    assert len(measured) > 50
    assert {name: described(found.of(name)) for name in measured} == measured


def bare_shapes(model):
    """What is found without any declaration inside the graph."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.Clear()
    return infer(bare, sizes_of(model))


def test_shapes_inside_a_function_are_those_of_its_call():
    model = zoo_graph("digits_cnn", layout="buckets").model
    found = infer(model, sizes_of(model))
    (node,) = (node for node in found.model.graph if node.op_type.startswith("RMSProp"))
    (body,) = found.bodies(node, found.scope)
    inner = {value: body.scope.of(value) for each in body.graph for value in each.outputs}
    assert {info.shape for info in inner.values()} == {(13706,)}
    assert body.times == 1


def test_open_dimensions_have_names_in_order():
    model = model_of(
        "g (float[N,3,?] x, int64[M] n, float[N] z, float[2] w) => (float[?] y) "
        "<float[2] w = {1, 2}> { y = Identity(z) }"
    )
    assert open_dimensions(ir.from_proto(model)) == ("N", "x[2]", "M")
    found = infer(model, {"N": 5, "x[2]": 7})
    assert (found.of("x").shape, found.of("n").shape) == ((5, 3, 7), (None,))
    assert found.of("y") == TensorInfo(TensorProto.FLOAT, (5,))


def test_an_unknown_operator_has_the_declared_shape():
    model = model_of("g (float[N] x) => (float[N,2] y) { y = custom.Twice(x) }")
    assert infer(model, {"N": 4}).of("y").shape == (4, 2)


@pytest.mark.parametrize(
    "text",
    [
        "(float[2,3] x) => (float y) { y = Transpose<perm = [5,0]>(x) }",
        "(float[2,3] x) => (float y) { y = Flatten<axis = -9>(x) y2 = Flatten<axis = 99>(x) }",
        "(float[2,3] x) => (float y) <int64[2] a = {0,0}> { y = Unsqueeze(x, a) }",
        "(float[2,3] x) => (float y) <int64[1] s = {4611686018427387904}> { y = Expand(x, s) }",
        "(float[2,3] x) => (float y) <int64[2] r = {-3,9223372036854775807}> { y = Tile(x, r) }",
        "(float[2,3] x) => (float y) <int64[2] s = {0,0}> { y = Reshape<allowzero = 1>(x, s) }",
        "(float[2,3] x) => (float y) <int64[2] s = {-1,-1}> { y = Reshape(x, s) }",
        "(float[1,2,3] x, float[1,2,3] w) => (float y) { y = Conv<strides = [0]>(x, w) }",
        "(float[1,2,3] x) => (float y) { y = MaxPool<kernel_shape = [9], strides = [-1]>(x) }",
        "(float[1,2,3] x) => (float y) { y = MaxPool(x) }",
        ("(int64 x) => (int64 y) <int64 a = {0}, int64 b = {9223372036854775807}, int64 d = {1}> "
        "{ y = Range(a, b, d) }"),
        "(int64 x) => (int64 y) <int64 a = {0}, int64 d = {0}> { y = Range(a, a, d) }",
        "(int64 x) => (float y) <int64[1] s = {9223372036854775807}> { y = ConstantOfShape(s) }",
        "(int64 x) => (float y) <float[1] s = {1e30}> { z = Mul(s, s) y = Cast<to = 7>(z) }",
        "(float[2] x) => (float y) { y = Split<axis = 7>(x) }",
        "(float[2] x) => (float y) <int64[1] s = {0}> { y = Slice(x, s, s, s, s) }",
        "(float[2] x) => (float y) { y = Concat<axis = 0>() }",
        "(float[2] x) => (float y) { y = Add() z = Gemm() a = Resize() b = Where() c = Einsum() }",
        ("(float[2] x) => (float y) { y = Scan<num_scan_inputs = -3, body: graph = g (float a) => "
        "(float b) { b = Identity(a) }>(x) }"),
        "(float[2] x) => (float y) { y = Scan(x) z = Loop(x) w = If(x) v = LSTM(x) }",
        '(float[2] x) => (float y) { y = Einsum<equation = "...,a->zz">(x, x) }',
        "(float[2] x) => (float y) { y = Constant() z = Constant<value_ints = [1,2]>() }",
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_unknown(text):
    model = model_of(f"g {text}")
    found = infer(model, {})
    stages = stages_of(model)
    operations.stage_facts(stages, found)
    memory.peak_activations(stages, found, [])
    shape = found.of("y").shape
    assert shape is None or all(size is None or 0 <= size <= LARGEST for size in shape)


def test_a_chain_of_outer_products_stays_bounded():
    lines = ["y0 = Reshape(x, column)"]
    for at in range(2000):
        lines += [f"a{at} = Reshape(y{at}, row)", f"b{at} = MatMul(y{at}, a{at})"]
        lines += [f"y{at + 1} = Reshape(b{at}, column)"]
    body = " ".join(lines)
    model = model_of(
        "g (float[9] x) => (float y) <int64[2] column = {-1,1}, int64[2] row = {1,-1}> "
        f"{{ {body} y = Identity(y2000) }}"
    )
    found = infer(model, {})
    assert found.of("y2").shape == (9**4, 1)
    assert found.of("y2000").shape == (None, 1)


def test_functions_that_call_each_other_twice_take_linear_time():
    functions = "\n".join(
        f'<domain: "local", opset_import: ["": 17, "local": 1]> f{at} (a) => (c) '
        f"{{ b = local.f{at + 1}(a) c = local.f{at + 1}(b) }}"
        for at in range(60)
    )
    model = model_of(
        f"g (float[2] x) => (float y) {{ y = local.f0(x) }}\n{functions}\n"
        '<domain: "local", opset_import: ["": 17]> f60 (a) => (c) { c = Neg(a) }',
        '<ir_version: 8, opset_import: ["": 17, "local": 1]>',
    )
    found = infer(model, {})
    (forward, *_) = operations.stage_facts(stages_of(model), found)
    assert forward.unknown > 0  # it is deeper than is looked


# Stages


@pytest.mark.quick
@pytest.mark.parametrize("layout", ["separate", "buckets"])
@pytest.mark.parametrize("name", ["digits_cnn", "mlp_mse", "resnet", "lstm"])
@pytest.mark.parametrize("reports", [True, False])
def test_stages_are_those_that_the_names_tell(name, layout, reports):
    model = zoo_graph(name, layout=layout).model
    reported = None if reports else ["updated"]
    stages = stages_of(model, reported=reported)
    before_loss = [value.name for value in ZOO[name].build().graph.output]
    forward = needed_for(model, before_loss)
    for node, stage in zip(model.graph.node, stages, strict=True):
        if node.name.startswith("backward/"):
            assert stage == "backward", node.name
        elif forward.intersection(node.output):
            assert stage == "forward", node
        elif node.name.startswith("update/"):
            assert stage == "update", node.name
        else:
            assert stage == "loss", node
    assert set(stages) == set(STAGES)


def needed_for(model, names):
    needed = set(names)
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(name for each in proto_nodes([node]) for name in each.input)
    return needed


def test_stages_need_no_names():
    model = onnx.ModelProto()
    model.CopyFrom(zoo_graph("digits_cnn").model)
    expected = stages_of(model)
    for node in model.graph.node:
        node.name = ""
    assert stages_of(model) == expected


@pytest.mark.parametrize("kind", ["update inside", "native"])
def test_stages_of_on_device_training(kind, tmp_path):
    model = digits_of(kind, tmp_path)
    stages = stages_of(model)
    for node, stage in zip(model.graph.node, stages, strict=True):
        if node.name.startswith("backward/"):
            assert stage == "backward", node.name
        if node.op_type == "InPlaceAccumulatorV2":
            assert stage == "update"
    assert Counter(stages)["forward"] == 10
    layer = dict(zip([node.output[0] for node in model.graph.node], stages, strict=True))
    assert layer["logits"] == "forward"
    assert layer["SoftmaxCrossEntropyLoss_1"] == layer["loss"] == "loss"


def test_stages_of_a_plain_model_and_of_an_update():
    plain = ZOO["mlp"].build()
    assert set(stages_of(plain)) == {"forward"}
    update = graphopt.update_graph(
        graphopt.RMSProp([graphopt.Parameter("w", (3,))], learning_rate=0.01)
    )
    assert set(stages_of(update.model)) == {"update"}


# Costs

SCAN = (
    "Scan<num_scan_inputs = 1, body: graph = g (float[4] s, float[4] r) => (float[4] t) "
    "{ q = Mul(s, r) t = Add(q, r) }>"
)
COSTS = {
    # 2 images, 6 of 4 channels in 2 groups, 3 x 3, on 5 x 5, and a bias
    "Conv": (
        ("(float[2,4,7,7] x, float[6,2,3,3] w, float[6] b) => (float y) "
        "{ y = Conv<group = 2>(x, w, b) }"),
        2 * (2 * 6 * 25) * (2 * 9) + 2 * 6 * 25,
        4 * (2 * 4 * 49 + 6 * 2 * 9 + 6 + 2 * 6 * 25),
    ),
    "ConvTranspose": (
        ("(float[2,4,5,5] x, float[4,3,2,2] w) => (float y) "
        "{ y = ConvTranspose<group = 2, strides = [2,2]>(x, w) }"),
        2 * (2 * 4 * 25) * (3 * 4),
        4 * (2 * 4 * 25 + 4 * 3 * 4 + 2 * 6 * 100),
    ),
    "MatMul": (
        "(float[5,2,3] x, float[3,4] w) => (float y) { y = MatMul(x, w) }",
        2 * 5 * 2 * 3 * 4,
        4 * (30 + 12 + 40),
    ),
    "Gemm": (
        ("(float[3,2] x, float[5,3] w, float[5] c) => (float y) "
        "{ y = Gemm<transA = 1, transB = 1>(x, w, c) }"),
        2 * 2 * 3 * 5 + 2 * 5,
        4 * (6 + 15 + 5 + 10),
    ),
    "Einsum": (
        '(float[2,3] x, float[3,4] w) => (float y) { y = Einsum<equation = "ij,jk->ik">(x, w) }',
        2 * 2 * 3 * 4,
        4 * (6 + 12 + 8),
    ),
    "Einsum outer": (
        '(float[2] x, float[3] w) => (float y) { y = Einsum<equation = "i,j->ij">(x, w) }',
        6,
        4 * (2 + 3 + 6),
    ),
    "MaxPool": (
        "(float[2,3,8,8] x) => (float y) { y = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x) }",
        2 * 3 * 16 * 4,
        4 * (2 * 3 * 64 + 2 * 3 * 16),
    ),
    "ReduceMean": (
        "(float[2,6] x) => (float y) { y = ReduceMean<axes = [1]>(x) }",
        12 + 2,
        4 * (12 + 2),
    ),
    "BatchNormalization": (
        ("(float[2,3,4] x, float[3] a, float[3] b, float[3] c, float[3] d) => (float y) "
        "{ y = BatchNormalization(x, a, b, c, d) }"),
        4 * 24,
        4 * (24 + 12 + 24),
    ),
    "LayerNormalization": (
        "(float[2,3] x, float[3] s) => (float y) { y = LayerNormalization(x, s) }",
        7 * 6,
        4 * (6 + 3 + 6),
    ),
    "Softmax": ("(float[2,3] x) => (float y) { y = Softmax(x) }", 5 * 6, 4 * 12),
    "LSTM": (
        ("(float[5,2,3] x, float[1,16,3] w, float[1,16,4] r) => (float y) "
        "{ y = LSTM<hidden_size = 4>(x, w, r) }"),
        2 * 5 * 2 * (16 * 3 + 16 * 4),
        4 * (30 + 48 + 64 + 40),
    ),
    "Resize linear": (
        ('(float[1,1,4,4] x) => (float y) <float[4] s = {1,1,2,2}> '
        '{ y = Resize<mode = "linear">(x, , s) }'),
        2 * 64 * 4,
        4 * (16 + 4 + 64),
    ),
    "GridSample": (
        "(float[2,3,4,4] x, float[2,5,6,2] w) => (float y) { y = GridSample(x, w) }",
        2 * (2 * 3 * 5 * 6) * 4,
        4 * (2 * 3 * 16 + 2 * 30 * 2 + 2 * 3 * 30),
    ),
    "GridSample cubic": (
        ('(float[2,3,4,4] x, float[2,5,6,2] w) => (float y) '
        '{ y = GridSample<mode = "bicubic">(x, w) }'),
        2 * (2 * 3 * 5 * 6) * 16,
        4 * (2 * 3 * 16 + 2 * 30 * 2 + 2 * 3 * 30),
    ),
    "AffineGrid": (
        "(float[2,2,3] x) => (float y) <int64[4] s = {2,1,4,5}> { y = AffineGrid(x, s) }",
        2 * (2 * 20 * 2) * 3,
        4 * (12 + 80) + 8 * 4,
    ),
    "DeformConv": (
        ("(float[2,4,5,5] x, float[6,2,3,3] w, float[2,18,3,3] o) => (float y) "
        "{ y = DeformConv<group = 2>(x, w, o) }"),
        2 * (2 * 6 * 9) * (2 * 9) + 2 * (2 * 4 * 9 * 9) * 4,
        4 * (200 + 108 + 324 + 108),
    ),
    "RoiAlign": (
        ("(float[2,3,8,8] x, float[5,4] r, int64[5] i) => (float y) "
        "{ y = RoiAlign<output_height = 2, sampling_ratio = 3>(x, r, i) }"),
        8 * (5 * 3 * 2) * 9,
        4 * (2 * 3 * 64 + 20 + 30) + 8 * 5,
    ),
    "Col2Im": (
        ("(float[2,12,15] x) => (float y) <int64[2] s = {4,6}, int64[2] k = {2,2}> "
        "{ y = Col2Im(x, s, k) }"),
        2 * 12 * 15,
        4 * (360 + 2 * 3 * 24) + 8 * 4,
    ),
    "broadcast": (
        "(float[2,1] x, float[3] w) => (float y) { y = Mul(x, w) }", 6, 4 * (2 + 3 + 6)
    ),
    "float16": ("(float16[8] x) => (float16 y) { y = Tanh(x) }", 8, 2 * 16),
    "integers": ("(int64[8] x) => (int64 y) { y = Add(x, x) }", 0, 8 * 24),
    "one of a table": (
        "(float[1000,4] x, int64[3] i) => (float y) { y = Gather(x, i) }", 0, 4 * 24 + 8 * 3
    ),
    "views": (
        ("(float[6,2] x) => (float y) <int64[2] s = {3,4}> "
        "{ a = Reshape(x, s) b = Flatten(a) c = Identity(b) d = Squeeze(c) n = Size(d) "
        "y = Neg(d) }"),
        12,
        4 * 24,
    ),
    "Scan": (
        f"(float[4] x, float[5,4] b) => (float y) {{ y = {SCAN}(x, b) }}",
        5 * (4 + 4),
        5 * (4 * 12 + 4 * 12),
    ),
    "the branch that costs more": (
        ("(bool x, float[8] a) => (float y) { y = If<then_branch: graph = t () => (float[8] p) "
        "{ p = Neg(a) }, else_branch: graph = e () => (float[8] q) "
        "{ r = Neg(a) q = Exp(r) }>(x) }"),
        16,
        2 * 4 * 16,
    ),
    "accumulation": (
        ("(float[6] x, float[6] g, bool[1] f) => (bool u, float y) "
        "{ u, y = com.microsoft.InPlaceAccumulatorV2(x, g, f) }"),
        6,
        4 * 18 + 1 + 1,
    ),
    "ConvGrad": (
        ("(float[2,6,5,5] g, float[2,4,7,7] x, float[6,4,3,3] w) => (float y, float z) "
        "{ y, z = com.microsoft.ConvGrad(g, x, w) }"),
        2 * 2 * (2 * 6 * 25) * (4 * 9),
        4 * (2 * 6 * 25 + 2 * (2 * 4 * 49 + 6 * 4 * 9)),
    ),
}  # fmt: skip


@pytest.mark.quick
@pytest.mark.parametrize("name", COSTS)
def test_costs_are_those_counted_by_hand(name):
    text, flops, moved = COSTS[name]
    model = model_of(f"g {text}")
    found = infer(model, {})
    forward, *others = operations.stage_facts(["forward"] * len(model.graph.node), found)
    assert (forward.flops, forward.bytes, forward.unknown) == (flops, moved, 0)
    assert others == [StageFacts(stage, 0, 0, 0) for stage in STAGES[1:]]


def test_what_cannot_be_counted_is_said():
    model = model_of(
        "g (float[4] x, float[?] u) => (float y) "
        "{ a = custom.Twice(x) b = Neg(u) c = Neg(x) y = Neg(a) }"
    )
    found = infer(model, {})
    forward, loss, *_ = operations.stage_facts(["loss", "forward", "forward", "loss"], found)
    assert (forward.flops, forward.bytes, forward.unknown) == (4, 32, 1)
    assert loss == StageFacts("loss", 2, None, None, 2)


@pytest.mark.parametrize(("layout", "rows"), [("chunks", 1), ("buckets", None)])
def test_an_update_reads_and_writes_each_tensor_once(layout, rows):
    count = 1000
    optimizer = graphopt.RMSProp(
        [graphopt.Parameter("w", (count,))], learning_rate=0.01, momentum=0.9
    )
    graph = graphopt.update_graph(optimizer, layout=layout)
    model = graph.model
    update = operations.stage_facts(stages_of(model), infer(model, {}))[-1]
    # w, g, mean square and moment are read, three of them written; else there are some scalars.
    assert 0 <= update.bytes - 4 * count * 7 < 200
    # g g; s decay, g g (1 - decay), +; s + epsilon, root; g lr, /; m momentum, +; w - m
    assert abs(update.flops - 11 * count) < 100
    assert update.unknown == 0
    (node,) = (node for node in model.graph.node if node.domain == "graphopt")
    assert ("Chunked" in node.op_type) == (rows is not None)


def test_an_update_that_is_written_out_moves_as_much():
    model = zoo_graph("digits_cnn", layout="chunks").model
    inlined = onnx.inliner.inline_local_functions(model)
    facts = [
        operations.stage_facts(stages_of(each), infer(each, sizes_of(each)))[-1]
        for each in (model, inlined)
    ]
    assert facts[0].flops == facts[1].flops
    assert facts[0].bytes == pytest.approx(facts[1].bytes, abs=100)  # some scalars


@pytest.mark.parametrize("name", ZOO)
def test_a_network_is_counted_whole(name):
    model = zoo_graph(name).model
    stages = stages_of(model)
    one, ten = (
        operations.stage_facts(stages, infer(model, sizes_of(model, batch))) for batch in (10, 100)
    )
    assert all(fact.unknown == 0 for fact in (*one, *ten))
    # The backward pass multiplies as often as the forward pass, twice.
    assert 1.3 < one[2].flops / one[0].flops < 2.7
    assert 9 < ten[0].flops / one[0].flops <= 10
    assert ten[3].flops == pytest.approx(one[3].flops, rel=1e-3)


# Memory


def peak(text, stages=None, resident=()):
    model = model_of(f"g {text}")
    stages = stages or ["forward"] * len(model.graph.node)
    return memory.peak_activations(stages, infer(model, {}), resident)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Each is 40 bytes: one is read, one is given.
        ("(float[10] x) => (float y) { a = Neg(x) b = Neg(a) c = Neg(b) y = Neg(c) }", 80),
        # a is still needed at the end
        ("(float[10] x) => (float y) { a = Neg(x) b = Neg(a) c = Neg(b) y = Add(c, a) }", 120),
        # so is a through its view
        (
            ("(float[10] x) => (float y) <int64[2] s = {5,2}> { a = Neg(x) v = Reshape(a, s) "
            "b = Neg(a) c = Neg(b) d = Neg(c) w = Identity(v) y = Neg(w) }"),
            120,
        ),
        # a view of what is fed takes nothing
        ("(float[10] x) => (float y) { v = Identity(x) a = Identity(v) y = Neg(a) }", 40),
        # what is reported is held to the end
        (
            "(float[10] x) => (float a, float y) { a = Neg(x) b = Neg(x) c = Neg(b) y = Neg(c) }",
            120,
        ),
        # what nobody reads is held while its node runs
        ("(float[10] x) => (float y) { a = Neg(x) b = Neg(x) y = Neg(x) }", 40),
        ("(float[?] x) => (float y) { y = Neg(x) }", None),
        # inside the body: s and what it computes of it
        (
            ("(float[10] x, float[5,10] b) => (float y) { y = Scan<num_scan_inputs = 1, "
            "body: graph = g (float[10] s, float[10] r) => (float[10] t) "
            "{ p = Mul(s, r) q = Neg(p) t = Neg(q) }>(x, b) }"),
            40 + 80,
        ),
    ],
)  # fmt: skip
def test_memory_is_that_counted_by_hand(text, expected):
    assert peak(text) == expected


def test_gradients_and_the_update_are_not_activations():
    text = (
        "(float[10] x, float[10] w) => (float w1) { a = Mul(x, w) g = Mul(a, x) h = Mul(g, x) "
        "w1 = Sub(w, h) z = Size(g) }"
    )
    stages = ["forward", "backward", "backward", "update", "update"]
    # a and g; h is a gradient.
    assert peak(text, stages, ["x", "w"]) == 80
    assert peak(text, stages, ["x", "w", "g"]) == 40


@pytest.mark.parametrize("seed", range(40))
def test_memory_is_that_of_a_simulation(seed):
    rng = random.Random(seed)
    sizes = {"x": 4}
    lines, reads = [], {}
    for at in range(25):
        name, kind = f"t{at}", rng.choice(["Identity", "Neg", "Concat", "Concat", "Split"])
        known = list(sizes)
        first = rng.choice(known[-6:])
        if kind in ("Identity", "Neg"):
            lines.append(f"{name} = {kind}({first})")
            reads[name], sizes[name] = (kind, [first], [name]), sizes[first]
        elif kind == "Concat":
            other = rng.choice(known)
            lines.append(f"{name} = Concat<axis = 0>({first}, {other})")
            reads[name] = (kind, [first, other], [name])
            sizes[name] = min(sizes[first] + sizes[other], 10**6)
        else:
            lines.append(f"{name}, {name}b = Split({first})")
            reads[name] = (kind, [first], [name, f"{name}b"])
            half = -(-sizes[first] // 2)
            sizes[name], sizes[f"{name}b"] = half, sizes[first] - half
    text = f"(float[4] x) => (float t24) {{ {' '.join(lines)} }}"
    assert peak(text) == simulated(list(reads.values()), sizes, "t24")


def simulated(nodes, sizes, output):
    """What is alive at each node, found by looking at all nodes anew each time."""

    def owner(name):
        made = next((node for node in nodes if name in node[2]), None)
        return owner(made[1][0]) if made and made[0] == "Identity" else name

    most = 0
    for at, (_, inputs, outputs) in enumerate(nodes):
        made = {owner(name) for node in nodes[: at + 1] for name in node[2]} - {"x"}
        wanted = {owner(name) for node in nodes[at:] for name in node[1]}
        wanted |= {owner(name) for name in (*inputs, *outputs, output)}
        wanted |= {owner(name) for node in nodes[at:] for name in node[2] if node[0] == "Identity"}
        most = max(most, sum(4 * sizes[name] for name in made & wanted))
    return most


def test_memory_of_a_network_holds_what_the_backward_pass_reads():
    model = zoo_graph("resnet").model
    resident = [value.input for value in zoo_graph("resnet").carried]
    resident += [tensor.name for tensor in model.graph.initializer]
    stages = stages_of(model)
    found = infer(model, sizes_of(model, 16))
    peak = memory.peak_activations(stages, found, resident)
    backward = {
        name
        for node, stage in zip(model.graph.node, stages, strict=True)
        for name in node.input
        if stage == "backward"
    }
    made = {
        name: found.of(name).bytes
        for node, stage in zip(model.graph.node, stages, strict=True)
        for name in node.output
        if stage in ("forward", "loss")
    }
    kept = sum(size for name, size in made.items() if name in backward)
    assert 0.4 * kept < peak < sum(made.values()) * 2
    # A part grows with the batch; the parameters taken out of their bucket do not.
    peaks = [
        memory.peak_activations(stages, infer(model, sizes_of(model, size)), resident)
        for size in (16, 32, 48)
    ]
    growth = peaks[1] - peaks[0], peaks[2] - peaks[1]
    assert peaks[0] == peak
    assert 0 < growth[0] <= growth[1] < 1.1 * growth[0]


# Layers


def layers_of(model, parameters=()):
    return layers.layers(ir.from_proto(model).graph, stages_of(model), parameters)


@pytest.mark.quick
def test_layers_of_the_digits_network():
    model = zoo_graph("digits_cnn").model
    names = list(graphopt.parameters(ZOO["digits_cnn"].build()))
    found = layers_of(model, [parameter.name for parameter in names])
    by_name = {(layer.stage, layer.name): layer for layer in found}
    assert len(by_name) == len(found)
    forward = [layer.name for layer in found if layer.stage == "forward"]
    assert forward == [
        "bucket0", "conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flat", "dense1", "relu3",
        "logits",
    ]  # fmt: skip
    conv = by_name["forward", "conv1"]
    assert conv.parameters == ("conv1.weight", "conv1.bias")
    assert conv.after == ("bucket0",)
    backward = [layer.name for layer in found if layer.stage == "backward"]
    assert backward == ["SoftmaxCrossEntropyLoss", *forward[:0:-1]]
    back = by_name["backward", "conv1"]
    assert back.parameters == conv.parameters
    assert back.after == ("relu1",)
    assert back.op_types == {"Transpose": 3, "Reshape": 2, "Conv": 1, "ReduceSum": 1}
    assert [layer.name for layer in found if layer.stage == "update"] == ["update", "bucket0"]
    assert sum(layer.nodes for layer in found) == len(model.graph.node)
    assert [layer.stage for layer in found] == sorted(
        (layer.stage for layer in found), key=STAGES.index
    )


@pytest.mark.parametrize(
    ("name", "output", "expected"),
    [
        ("conv1/Relu", "a", "conv1"),
        ("/net/block.0/conv/Conv", "a", "/net/block.0/conv"),
        ("dense.matmul", "a", "dense"),
        ("block.0", "a", "block.0"),
        ("Conv_3", "a", "Conv_3"),
        ("", "hidden", "hidden"),
        ("", "dense1/out", "dense1"),
        ("", "127", "Neg_0"),
    ],
)
def test_a_layer_is_called_after_its_scope(name, output, expected):
    node = helper.make_node("Neg", ["x"], [output], name=name)
    graph = helper.make_graph([node], "g", [], [])
    (layer,) = layers_of(helper.make_model(graph))
    assert layer.name == expected


def test_layers_of_gradients_by_onnx_runtime():
    text = (
        "(float[2,3] x, float[3,4] w, float[2,4] d) => (float g) { h = MatMul(x, w) r = Relu(h) "
        "e = com.microsoft.ReluGrad(d, r) t = Transpose(x) g = MatMul(t, e) }"
    )
    model = model_of(f"g {text}")
    stages = ["forward", "forward", "backward", "backward", "backward"]
    for names in (
        ["", "", "", "", ""],
        ["f1", "f2", "f2_Grad/ReluGrad_0", "f1_Grad/T", "f1_Grad/M"],
    ):
        for node, name in zip(model.graph.node, names, strict=True):
            node.name = name
        found = layers.layers(ir.from_proto(model).graph, stages, ["w"])
        product, relu = ("f1", "f2") if names[0] else ("h", "r")
        assert [(layer.stage, layer.name) for layer in found] == [
            ("forward", product), ("forward", relu), ("backward", relu), ("backward", product),
        ]  # fmt: skip
        assert found[-1].parameters == ("w",)


def test_layers_of_an_update_without_names():
    model = onnx.ModelProto()
    model.CopyFrom(zoo_graph("digits_cnn", layout="separate").model)
    for node in model.graph.node:
        node.name = ""
    found = {layer.name: layer for layer in layers_of(model) if layer.stage == "update"}
    assert {"conv1.weight", "dense2.bias", "update"} <= set(found)
    assert found["conv1.weight"].op_types["RMSPropMomentum"] == 1


@needs_training_package
@pytest.mark.parametrize("name", ["digits_cnn", "resnet", "transformer"])
def test_gradients_by_onnx_runtime_are_counted_whole(name):
    forward = ZOO[name].build()
    optimizer = graphopt.RMSProp(graphopt.parameters(forward), learning_rate=0.01, momentum=0.9)
    graph = graphopt.training_graph(forward, ZOO[name].loss, optimizer, portable=False)
    model = graph.model
    found = infer(model, sizes_of(model))
    stages = stages_of(model)
    facts = operations.stage_facts(stages, found)
    assert [fact.unknown for fact in facts] == [0] * 4
    own = zoo_graph(name).model
    own_facts = operations.stage_facts(stages_of(own), infer(own, sizes_of(own)))
    # The same products, in other operators.
    for fact, other in zip(facts, own_facts, strict=True):
        if fact.stage in ("forward", "backward"):
            assert fact.flops == pytest.approx(other.flops, rel=0.1)
    resident = [value.input for value in graph.carried]
    resident += [tensor.name for tensor in model.graph.initializer]
    assert memory.peak_activations(stages, found, resident) > 0
    layers = layers_of(model)
    before = {layer.name for layer in layers if layer.stage in ("forward", "loss")}
    after = {layer.name for layer in layers if layer.stage == "backward"}
    assert after <= before


# Size


def test_thousands_of_nodes():
    lines = [f"y{at + 1} = Relu(y{at})" for at in range(20_000)]
    model = model_of(f"g (float[8] y0) => (float y20000) {{ {' '.join(lines)} }}")
    found = infer(model, {})
    stages = stages_of(model)
    facts = operations.stage_facts(stages, found)
    assert facts[0].flops == 8 * 20_000
    assert memory.peak_activations(stages, found, []) == 64
    assert len(layers.layers(ir.from_proto(model).graph, stages, [])) == 20_000
