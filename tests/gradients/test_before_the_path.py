"""What lies before the trained part, or beside it, is passed on as it is, whatever it is."""

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

import graphopt
from tests.helpers.gradient_oracle import normal

X = normal(5, 2, 3)
HEAD = normal(4, 2, seed=1)


def parse(text, opset=17, extra="", ir_version=8, **arrays):
    model = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}{extra}]> {text}'
    )
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()
    )
    return model


def trained(model, *names, **options):
    optimizer = graphopt.RMSProp(graphopt.parameters(model).matching(*names), learning_rate=0.1)
    return graphopt.Session(graphopt.training_graph(model, "mse", optimizer, **options))


def operators(session):
    return {node.op_type for node in session.graph.model.graph.node}


def check_head(session, features, feeds):
    """The head is trained by the features before it, as a least squares problem is."""
    labels = normal(len(features), 2, seed=2)
    outputs = session.step({**feeds, "labels": labels})
    error = features @ HEAD - labels
    np.testing.assert_allclose(outputs["loss"], np.mean(error**2), rtol=1e-5)
    gradient = 2 * features.T @ error / error.size
    mean_square = 0.9 + 0.1 * gradient**2
    np.testing.assert_allclose(session.state["mean_square.head"], mean_square, rtol=1e-4)


RECURRENT = parse(
    "m (float[T,N,3] x) => (float[N,2] y) { , h = LSTM<hidden_size=4>(x, W, R) "
    "s = Squeeze(h, ax) y = MatMul(s, head) }",
    W=normal(1, 16, 3), R=normal(1, 16, 4), ax=np.array([0]), head=HEAD)  # fmt: skip
BRANCH = parse(
    "m (float[T,N,3] x, bool c) => (float[N,2] y) { k = ReduceSum<keepdims=0>(x, ax) "
    "p = Pad(k, pads) s = If (c) <then_branch = t () => (float[N,4] a) { a = Neg(p) }, "
    "else_branch = e () => (float[N,4] b) { b = Exp(p) }> y = MatMul(s, head) }",
    ax=np.array([0]), pads=np.array([0, 0, 0, 1]), head=HEAD)  # fmt: skip
LOOP = parse(
    "m (float[T,N,3] x, int64 n) => (float[N,2] y) { k = ReduceSum<keepdims=0>(x, ax) "
    "p = Pad(k, pads) s = Loop (n, , p) <body = b (int64 i, bool c, float[N,4] q) => (bool d, "
    "float[N,4] r) { d = Identity(c) r = Mul(q, q) }> y = MatMul(s, head) }",
    ax=np.array([0]), pads=np.array([0, 0, 0, 1]), head=HEAD)  # fmt: skip
UNKNOWN = parse(
    "m (float[T,N,3] x) => (float[N,2] y) <float[N,4] s> { k = ReduceSum<keepdims=0>(x, ax) "
    "q = com.microsoft.Gelu(k) p = Pad(q, pads) s = com.microsoft.QuickGelu<alpha=1.0>(p) "
    "y = MatMul(s, head) }",
    extra=', "com.microsoft" : 1', ax=np.array([0]), pads=np.array([0, 0, 0, 1]),
    head=HEAD)  # fmt: skip
SCALER = parse(
    "m (float[T,N,3] x) => (float[N,2] y) <float[N,4] s> { k = ReduceSum<keepdims=0>(x, ax) "
    "p = Pad(k, pads) s = ai.onnx.ml.Scaler<offset=[1.0], scale=[2.0]>(p) y = MatMul(s, head) }",
    extra=', "ai.onnx.ml" : 1', ax=np.array([0]), pads=np.array([0, 0, 0, 1]),
    head=HEAD)  # fmt: skip
GROUPS = parse(
    "m (float[T,N,3] x) => (float[N,2] y) { k = ReduceSum<keepdims=0>(x, ax) p = Pad(k, pads) "
    "g = GroupNormalization<num_groups=2>(p, gs, gs) s = Add(g, p) y = MatMul(s, head) }",
    opset=21, ir_version=10, ax=np.array([0]), pads=np.array([0, 0, 0, 1]),
    gs=normal(4), head=HEAD)  # fmt: skip
BEFORE = {
    "recurrent": (RECURRENT, "LSTM", {}),
    "branch": (BRANCH, "If", {"c": np.array(True)}),
    "loop": (LOOP, "Loop", {"n": np.array(2)}),
    "of another domain": (UNKNOWN, "QuickGelu", {}),
    "scaler": (SCALER, "Scaler", {}),
    "defined by others": (GROUPS, "GroupNormalization", {}),
}


def features(model, feeds):
    """What the frozen part computes, in the runtime."""
    import onnxruntime

    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    proto.graph.output.append(helper.make_tensor_value_info("s", 1, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return session.run(["s"], feeds)[0]


@pytest.mark.parametrize(("model", "operator", "feeds"), BEFORE.values(), ids=BEFORE)
def test_a_head_behind_what_has_no_gradient(model, operator, feeds):
    feeds = {"x": X, **feeds}
    session = trained(model, "head")
    assert operator in operators(session)
    check_head(session, features(model, feeds), feeds)


@pytest.mark.parametrize(("model", "operator", "feeds"), BEFORE.values(), ids=BEFORE)
def test_what_stands_beside_the_loss(model, operator, feeds):
    """The same as a second output, to which the trained part leads."""
    text = onnx.ModelProto()
    text.CopyFrom(model)
    text.graph.node[-1].output[0] = "beside"
    text.graph.output[0].name = "beside"
    text.graph.node.insert(0, helper.make_node("Mul", ["x", "w"], ["xw"]))
    for node in text.graph.node[1:]:
        node.input[:] = ["xw" if name == "x" else name for name in node.input]
    text.graph.output.append(helper.make_tensor_value_info("xw", 1, ["T", "N", 3]))
    text.graph.initializer.append(numpy_helper.from_array(np.ones(3, "f"), "w"))
    session = trained(text, "w", loss_output="xw")
    assert operator in operators(session)
    outputs = session.step({"x": X, **feeds, "labels": 0 * X})
    np.testing.assert_allclose(outputs["loss"], np.mean(X**2), rtol=1e-5)
    np.testing.assert_allclose(
        outputs["beside"], features(model, {"x": X, **feeds}) @ HEAD, rtol=1e-4
    )
    gradient = 2 * (X**2).sum((0, 1)) / X.size
    np.testing.assert_allclose(session.state["mean_square.w"], 0.9 + 0.1 * gradient**2, rtol=1e-4)


@pytest.mark.parametrize("opset", [11, 13, 22])
@pytest.mark.parametrize("name", ["of another domain", "scaler", "branch"])
def test_other_opsets(name, opset):
    model, operator, feeds = BEFORE[name]
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    converted.opset_import[0].version = opset
    converted.ir_version = 10 if opset > 20 else 8
    if opset < 13:
        (node,) = (n for n in converted.graph.node if n.op_type == "ReduceSum")
        node.input.pop()
        node.attribute.append(helper.make_attribute("axes", [0]))
    session = trained(converted, "head")
    assert operator in operators(session)
    feeds = {"x": X, **feeds}
    check_head(session, features(model, feeds), feeds)


def test_an_unknown_shape_behind_another_domain_is_named():
    text = (
        "m (float[N,4] x) => (float[N,2] y) {INFO} { s = own.Kernel(x) "
        "p = MatMul(s, head) y = Add(p, b) }"
    )
    options = {"extra": ', "own" : 1', "head": HEAD, "b": np.zeros((1, 2), "f")}
    model = parse(text.replace("{INFO}", ""), **options)
    optimizer = graphopt.RMSProp(graphopt.parameters(model))
    with pytest.raises(ValueError, match=r"rank of 'p'.*value_info"):
        graphopt.training_graph(model, "mse", optimizer)
    model = parse(text.replace("{INFO}", "<float[N,4] s>"), **options)
    graph = graphopt.training_graph(model, "mse", optimizer)
    assert "Kernel" in {node.op_type for node in graph.model.graph.node}
