"""Forward models are opened as they are meant: old and new ones, with functions, badly declared."""

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import graphopt
from graphopt.versions import MAX_OPSET

RNG = np.random.default_rng(0)
W = RNG.normal(size=4).astype("f")
X = RNG.normal(size=(3, 4)).astype("f")


def parse(text, opset=18, ir_version=8, extra="", **arrays):
    model = onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}{extra}]> {text}'
    )
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()
    )
    return model


def session(model, names=("w",), loss="loss"):
    trained = [p for p in graphopt.parameters(model) if p.name in names]
    optimizer = graphopt.RMSProp(trained, learning_rate=0.01, decay=0.0)
    return graphopt.Session(graphopt.training_graph(model, loss, optimizer))


def forward_loss(model, feeds, w):
    """What the model itself computes, with other parameters."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(w.astype("f"), "w"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    run = onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return float(run.run(["loss"], feeds)[0])


def check_gradient(model, feeds, w=W, step=1e-2, tolerance=2e-2):
    """A step of plain gradient descent in disguise: with decay 0 it moves by the gradient's sign,
    so the gradient is read from the mean square instead."""
    trainer = session(model)
    outputs = trainer.step(feeds)
    np.testing.assert_allclose(outputs["loss"], forward_loss(model, feeds, w), rtol=1e-5)
    got = np.sqrt(trainer.state["mean_square.w"]).reshape(-1)
    expected = np.empty(w.size)
    for index in range(w.size):
        up, down = w.astype("d").copy(), w.astype("d").copy()
        up.flat[index] += step
        down.flat[index] -= step
        expected[index] = (forward_loss(model, feeds, up) - forward_loss(model, feeds, down)) / (
            2 * step
        )
    np.testing.assert_allclose(got, np.abs(expected), atol=tolerance * np.abs(expected).max())


def declared(model, **shapes):
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()
    )
    return model


STALE = {
    "output": parse("m (float[N,4] x) => (float loss, float[1,4] z) { a = Mul(x, w) z = Tanh(a) "
                    "loss = ReduceMean<keepdims=0>(z) }", w=W),
    "inner value": declared(
        parse("m (float[N,4] x) => (float loss) { a = Mul(x, w) z = Tanh(a) "
              "loss = ReduceMean<keepdims=0>(z) }", w=W), z=[1, 4]),
    "broadcast": declared(
        parse("m (float[N,4] x) => (float loss) { a = Mul(x, x) z = Add(a, w) y = Tanh(z) "
              "loss = ReduceSum<keepdims=0>(y) }", w=W), z=[4, 4], a=[1, 4]),
}  # fmt: skip


@pytest.mark.parametrize("model", STALE.values(), ids=STALE)
def test_declarations_that_do_not_follow_from_the_inputs_are_not_believed(model):
    check_gradient(model, {"x": X})


def test_sizes_that_only_a_declaration_knows_are_taken_from_it():
    text = ("m (float[N,4] x, int64[2] s) => (float loss) { a = Mul(x, w) r = Reshape(a, s) "
            "n = Split<axis=1, num_outputs=2>(r) loss = ReduceSum<keepdims=0>(n) }")  # fmt: skip
    model = declared(parse(text.replace("n = Split", "n, o = Split"), w=W), r=[None, 4])
    check_gradient(model, {"x": X, "s": np.array([3, 4])})


@pytest.mark.parametrize("opset", [9, 10])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_old_resizes_keep_their_meaning(opset, mode, scale):
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["a"]),
        helper.make_node("Upsample" if opset == 9 else "Resize", ["a", "s"], ["y"], mode=mode),
        helper.make_node("Mul", ["y", "y"], ["z"]),
        helper.make_node("ReduceMean", ["z"], ["loss"], keepdims=0),
    ]
    scales = np.array([1, 1, scale, scale], "f")
    graph = helper.make_graph(
        nodes, "m", [info("x", 1, [1, 1, 4, 4])], [info("loss", 1, [])],
        [numpy_helper.from_array(W, "w"), numpy_helper.from_array(scales, "s")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=5)
    check_gradient(model, {"x": RNG.normal(size=(1, 1, 4, 4)).astype("f")})


NEWER = {
    "GlobalMaxPool 22": ("g = GlobalMaxPool(i)", 22),
    "Swish 24": ("g = Swish(i)", 24),
    "RMSNormalization 23": ("g = RMSNormalization(i, k)", 23),
}


@pytest.mark.quick
@pytest.mark.parametrize(("text", "opset"), NEWER.values(), ids=NEWER)
def test_newer_operators(text, opset):
    model = parse(
        "m (float[N,4] x) => (float loss) { t = Constant<value_ints=[0, 2, 2]>() a = Mul(x, w) "
        f"i = Reshape(a, t) {text} h = Mul(g, g) loss = ReduceSum<keepdims=0>(h) }}",
        opset=opset, ir_version=10, w=W, k=np.array([1, 2], "f"),
    )  # fmt: skip
    trainer = session(model)
    assert graphopt.requirements(trainer.graph).opsets[""] <= MAX_OPSET
    trainer.step({"x": X})
    assert np.isfinite(trainer.state["w"]).all()


@pytest.mark.parametrize("opset", [13, 18, 22])
def test_functions_of_the_model_survive_the_conversion(opset):
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : {opset}, "d" : 1]>
        m (float[N,4] x) => (float loss, float[N,4] beside) {{
            a = Mul(x, w) y = d.outer(a) loss = ReduceSum<keepdims=0>(y) beside = d.inner(x) }}
        <domain: "d", opset_import: ["" : {opset}, "d" : 1]>
        outer (p) => (r) {{ q = d.inner(p) r = Mul(q, q) }}
        <domain: "d", opset_import: ["" : {opset}]>
        inner (p) => (r) {{ r = Tanh(p) }}""")
    model.graph.initializer.append(numpy_helper.from_array(W, "w"))
    trainer = session(model)
    outputs = trainer.step({"x": X})
    np.testing.assert_allclose(outputs["beside"], np.tanh(X), rtol=1e-5)
    expected = np.abs(np.sum(2 * np.tanh(X * W) * (1 - np.tanh(X * W) ** 2) * X, 0))
    np.testing.assert_allclose(np.sqrt(trainer.state["mean_square.w"]), expected, rtol=1e-4)


def test_the_model_is_left_as_it_was():
    """Also what onnx-ir would name in place."""
    model = parse("m (float[N,4] x) => (float loss) { e = Constant<value=float[1]{2}>() "
                  "y = Pow(w, e) z = Mul(y, x) loss = ReduceSum<keepdims=0>(z) }", w=W)  # fmt: skip
    before = onnx.ModelProto()
    before.CopyFrom(model)
    session(model)
    assert model == before


def test_batch_normalization_whose_scale_is_computed_from_a_parameter_is_trained():
    ones, zeros = np.ones(4, "f"), np.zeros(4, "f")
    model = parse("m (float[N,4] x) => (float[N,4] y) { i = Exp(w) "
                  "y = BatchNormalization(x, i, b, mean, var) }", w=W, b=zeros, mean=zeros,
                  var=ones)  # fmt: skip
    trained = [p for p in graphopt.parameters(model) if p.name == "w"]
    graph = graphopt.training_graph(model, "mse", graphopt.RMSProp(trained))
    assert {"w", "mean", "var"} <= {c.input for c in graph.carried}


def test_sequences_beside_the_path():
    model = parse("m (float[N,4] x) => (float loss, float[N,4] z) { a = Mul(x, w) "
                  "loss = ReduceSum<keepdims=0>(a) k = Constant<value_int=1>() "
                  "s = SequenceConstruct(x, a) z = SequenceAt(s, k) }", w=W)  # fmt: skip
    outputs = session(model).step({"x": X})
    np.testing.assert_allclose(outputs["z"], X * W, rtol=1e-6)


def test_old_ir_versions():
    model = parse("m (float[N,4] x) => (float loss) { a = Mul(x, w) "
                  "loss = ReduceSum<keepdims=0>(a) }", w=W)  # fmt: skip
    model.graph.input.append(helper.make_tensor_value_info("w", 1, [4]))
    model.ir_version = 3
    graph = session(model).graph
    assert graph.model.ir_version == 8
    onnx.checker.check_model(graph.model)


def test_transposes_that_move_nothing():
    """ONNX Runtime 1.19 fuses them with the Gemm behind as if they did."""
    model = parse("m (float[2,2] x) => (float loss) { t = Transpose<perm=[0,1]>(r) "
                  "y = Gemm(t, x) z = Mul(y, y) loss = ReduceSum<keepdims=0>(z) "
                  "}".replace("t = ", "k = Constant<value_ints=[2,2]>() r = Reshape(w, k) t = "),
                  w=W)  # fmt: skip
    x, w = X[:2, :2], W.reshape(2, 2)
    trainer = session(model)
    trainer.step({"x": x})
    expected = np.abs(2 * (w @ x) @ x.T).reshape(-1)
    np.testing.assert_allclose(np.sqrt(trainer.state["mean_square.w"]), expected, rtol=1e-4)
