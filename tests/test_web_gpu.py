"""Formulations for WebGPU mean the same as the nodes whose place they take; run on the CPU."""

import numpy as np
import onnx
import pytest

import graphopt
from graphopt.web_gpu import PROVIDER
from models.zoo import ZOO

pytestmark = pytest.mark.any_runtime
# What onnxruntime-web 1.30 has no kernel of on WebGPU, and these graphs would use.
LACKING = {"LogSoftmax", "OneHot", "Sign", "ConstantOfShape"}
OVERLAPPING = {"resnet"}  # its max pooling


def graph(name, provider):
    model = ZOO[name].build()
    optimizer = graphopt.RMSProp(
        graphopt.parameters(model),
        graphopt.schedules.CosineDecayLR(0.0, 0.002, 100),
        momentum=0.9,
        centered=True,
        average=graphopt.ParameterAverage(0.9, warm_up=True),
    )
    return graphopt.training_graph(model, ZOO[name].loss, optimizer, provider=provider)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(set(ZOO) - OVERLAPPING))
def test_trains_as_the_graph_for_the_cpu(name):
    for_gpu = graph(name, PROVIDER)
    sessions = [graphopt.Session(g) for g in (for_gpu, graph(name, "CPUExecutionProvider"))]
    rng = np.random.default_rng(0)
    for _ in range(5):
        feeds = ZOO[name].feeds(rng, 4)
        one, other = (float(session.step(feeds)["loss"]) for session in sessions)
        assert one == pytest.approx(other, rel=2e-5)


@pytest.mark.parametrize("name", sorted(set(ZOO) - OVERLAPPING))
def test_has_only_what_runs_there(name):
    model = graph(name, PROVIDER).model
    floats = onnx.shape_inference.infer_shapes(model, data_prop=True)
    dtypes = {v.name: v.type.tensor_type.elem_type for v in floats.graph.value_info}
    for node in model.graph.node:
        kinds = {dtypes.get(value) for value in node.output}
        assert onnx.TensorProto.DOUBLE not in kinds, node.name
        assert node.op_type not in LACKING or onnx.TensorProto.FLOAT not in kinds, node.name
        if onnx.TensorProto.FLOAT in kinds:
            assert len(node.input) + len(node.output) <= 10, node.name
    assert onnx.TensorProto.DOUBLE not in {t.data_type for t in model.graph.initializer}


def test_pooling_that_needs_indices_is_refused():
    with pytest.raises(ValueError, match=r"MaxPool '.*needs the places of the largest elements"):
        graph("resnet", PROVIDER)


def test_float64_is_refused():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> m (double[N, 2] x) => (float[N, 1] y)
        <float[2, 1] w = {1, 2}> { f = Cast<to=1>(x) y = MatMul(f, w) }"""
    )
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    with pytest.raises(ValueError, match="'x' is float64, which WebGpuExecutionProvider does not"):
        graphopt.training_graph(model, "mse", optimizer, provider=PROVIDER)
    graphopt.training_graph(model, "mse", optimizer)


@pytest.mark.parametrize("sizes", [None, [1, 2, 3, 1, 1, 1, 1, 1, 1], "unknown"])
@pytest.mark.parametrize("axis", [0, 1])
def test_many_parts(sizes, axis):
    """As the runtime computes them on the CPU, and nine tensors beside each other too."""
    shape = [12, 2] if axis == 0 else [2, 12]
    count = 9 if isinstance(sizes, list) else 12
    parts = ", ".join(f"p{i}" for i in range(count))
    given, text = "", ""
    if isinstance(sizes, list):
        given, text = ", sizes", f", int64[9] sizes = {{{', '.join(map(str, sizes))}}}"
    elif sizes:
        given, text = ", sizes", ", int64[1] one = {1}, int64[1] twelve = {12}"
    unknown = "sizes = Expand(one, twelve)" if sizes == "unknown" else ""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]> m (float[{shape[0]}, {shape[1]}] x) => (float y)
        <float[{shape[0]}, {shape[1]}] w = {{{", ".join(map(str, range(24)))}}}{text}> {{
            z = Mul(x, w) {unknown}
            {parts} = Split<axis={axis}>(z{given})
            back = Concat<axis={axis}>({", ".join(reversed(parts.split(", ")))})
            squares = Mul(back, back)
            y = ReduceSum<keepdims=0>(squares)
        }}"""
    )
    optimizer = graphopt.RMSProp([p for p in graphopt.parameters(model) if p.name == "w"], 0.1)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    results = []
    for provider in (PROVIDER, "CPUExecutionProvider"):
        built = graphopt.training_graph(model, "y", optimizer, provider=provider)
        session = graphopt.Session(built)
        session.step({"x": x})
        results.append(session.state["w"])
        operators = [node for node in built.model.graph.node if node.op_type == "Split"]
        assert bool(operators) == (provider != PROVIDER)
    np.testing.assert_allclose(*results, rtol=1e-6)
