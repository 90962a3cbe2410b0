"""On-device training writes nothing before everything that reads it has run."""

import numpy as np
import onnx
import pytest
from onnx import parser

import graphopt
from graphopt.in_place import early_writes
from tests.helpers.environments import HAS_TRAINING_PACKAGE, needs_training_package

if HAS_TRAINING_PACKAGE:
    from tests.helpers.device import Device

HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
# Outputs that show a parameter must show that from before the update.
GRAPHS = {
    "a chain": """net (float[4,3] x) => (float[4,3] y)
        <float[3,3] a = {1,2,0,0,1,2,2,0,1}, float[3,3] b = {1,0,1,1,1,0,0,1,1}>
        { h = MatMul(x, a)  y = MatMul(h, b) }""",
    "shared": """net (float[4,3] x) => (float[4,3] y)
        <float[3,3] a = {1,2,0,0,1,2,2,0,1}, float[3,3] b = {1,0,1,1,1,0,0,1,1}>
        { h = MatMul(x, a)  k = Tanh(h)  m = MatMul(k, a)  n = Add(m, h)  y = MatMul(n, b) }""",
    "read twice": """net (float[4,3] x) => (float[4,3] y)
        <float[3,3] a = {1,2,0,0,1,2,2,0,1}, float[3] b = {1,0,2}>
        { t = Transpose(a)  g = MatMul(a, t)  h = MatMul(x, g)  c = Mul(h, b)  y = Mul(c, b) }""",
    "reported": """net (float[4,3] x)
        => (float[4,3] y, float[9] flat, float[3] same, float[3,3] turned)
        <float[3,3] a = {1,2,0,0,1,2,2,0,1}, float[3] b = {1,0,2}, int64[1] all = {-1}>
        { h = MatMul(x, a)  y = Add(h, b)  flat = Reshape(a, all)  same = Identity(b)
          turned = Transpose(a) }""",
    "a view in a view": """net (float[4,3] x) => (float[4,3] y, float[1,9] row)
        <float[3,3] a = {1,2,0,0,1,2,2,0,1}, float[3] b = {1,0,2}, int64[1] all = {-1},
         int64[1] zero = {0}>
        { h = MatMul(x, a)  y = Add(h, b)  flat = Reshape(a, all)  row = Unsqueeze(flat, zero) }""",
    "branches": """net (float[4,3] x) => (float[4,3] y, float[3] side)
        <float[3,3] a = {1,2,0,0,1,2,2,0,1}, float[3] b = {1,0,2}>
        { l = MatMul(x, a)  r = Add(x, b)  s = Sigmoid(r)  y = Mul(l, s)
          side = Softmax<axis=0>(b) }""",
}


def network(text):
    model = parser.parse_model(HEAD + text)
    onnx.checker.check_model(model)
    return model


@needs_training_package
@pytest.mark.parametrize("optimizer_model", [False, True], ids=["update inside", "native"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("text", GRAPHS.values(), ids=GRAPHS)
def test_results(text, threads, optimizer_model, tmp_path):
    model = network(text)
    opt = graphopt.RMSProp(graphopt.parameters(model), learning_rate=0.1)
    outputs = [value.name for value in model.graph.output]
    files = graphopt.export_on_device(
        model,
        "mse",
        opt,
        tmp_path / "device",
        output="y",
        outputs=outputs,
        optimizer_model=optimizer_model,
    )
    device = Device(files, threads=threads)
    graph = graphopt.training_graph(model, "mse", opt, output="y", layout="separate")
    session = graphopt.Session(graph, kernels=False)
    rng = np.random.default_rng(0)
    for _ in range(5):
        shapes = {"x": (4, 3), "labels": (4, 3)}
        feeds = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
        before, expected = device.state, session.step(feeds)
        found = device.step(feeds)
        for name in ("loss", *outputs):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)
        if "flat" in found:
            np.testing.assert_array_equal(found["flat"], before["a"].ravel())
            np.testing.assert_array_equal(found["same"], before["b"])
        state = device.state
        for name, array in session.state.items():
            np.testing.assert_allclose(state[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


WRITES = {
    "waits": ("h = Mul(w, x)  one = Sub(h, h)  d = Add(w, one)", []),
    "the reader comes after": ("d = Add(w, x)  h = Mul(w, x)", ["w"]),
    "the reader comes before, but nothing waits": ("h = Mul(w, x)  d = Add(w, x)", ["w"]),
    "a view is read": ("v = Reshape(w, s)  h = Mul(v, x)  d = Add(w, x)", ["w"]),
    "a view is waited for": ("v = Reshape(w, s)  h = Mul(v, x)  d = Add(h, w)", []),
}


@pytest.mark.quick
@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize(("body", "early"), WRITES.values(), ids=WRITES)
def test_early_writes(body, early, branch):
    """Without the wait it is found, in the graph and in a branch."""
    write = "u = com.microsoft.InPlaceAccumulatorV2(w, d, always)"
    if branch:
        write = """u = If(c) <then_branch = t () => (bool[1] f)
            { f = com.microsoft.InPlaceAccumulatorV2(w, d, always) },
            else_branch = e () => (bool[1] n) { n = Identity(always) }>"""
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[3] w, float[3] x, bool c) => (float[3] h, bool[1] u)
        <bool[1] always = {{1}}, int64[1] s = {{-1}}> {{ {body} {write} }}"""
    )
    assert early_writes(model) == early


def test_an_input_that_is_reported_is_never_safe():
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[3] w, float[3] x) => (float[3] w, bool[1] u) <bool[1] always = {1}>
        { d = Add(w, x) u = com.microsoft.InPlaceAccumulatorV2(w, d, always) }"""
    )
    assert early_writes(model) == ["w"]


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("text", GRAPHS.values(), ids=GRAPHS)
def test_exported_graphs_are_proven(text, accumulate, tmp_path):
    """Also without ONNX Runtime's training package."""
    model = network(text)
    opt = graphopt.RMSProp(
        graphopt.parameters(model), learning_rate=0.1, momentum=0.9, centered=True
    )
    files = graphopt.export_on_device(
        model, "mse", opt, tmp_path / "device", output="y", gradient_accumulation=accumulate
    )
    training = onnx.load(files.training_model)
    onnx.checker.check_model(training)
    assert early_writes(training) == []
    written = [node.op_type for node in training.graph.node].count("InPlaceAccumulatorV2")
    assert written == (3 if accumulate else 9)  # two sums and a counter; the rest is in a branch
