"""Forward models that are unusual but valid train exactly; what cannot be trained is refused."""

import os

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional

import graphopt
from tests.helpers.environments import both_gradients
from tests.helpers.odd_models import FORWARD, HEADER, RNG, X, model


def build(forward, loss, names=None, output=None, portable=True, **settings):
    params = [p for p in graphopt.parameters(forward) if names is None or p.name in names]
    optimizer = graphopt.RMSProp(params, **({"learning_rate": 0.01} | settings))
    return graphopt.training_graph(forward, loss, optimizer, output=output, portable=portable)


def gradients(graph, feeds):
    """What the graph computes for each parameter before it is updated."""
    views = [view.name for c in graph.carried for view in c.views]
    names = [name for name in views if f"{name}_grad" in produced(graph)]
    probe = onnx.ModelProto()
    probe.CopyFrom(graph.model)
    probe.ClearField("training_info")
    probe.graph.output.extend(onnx.ValueInfoProto(name=f"{name}_grad") for name in names)
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    start = {c.input: full(c) for c in graph.carried}
    values = session.run([f"{name}_grad" for name in names], start | feeds)
    return dict(zip(names, values, strict=True))


def produced(graph):
    return {name for node in graph.model.graph.node for name in node.output}


def full(carried):
    if isinstance(carried.initial, np.ndarray):
        return carried.initial.copy()
    return np.full(carried.shape, carried.initial, carried.dtype)


@pytest.mark.quick
@both_gradients
@pytest.mark.parametrize(("forward", "loss"), FORWARD.values(), ids=FORWARD)
def test_gradients(forward, loss, portable):
    values = {
        t.name: torch.tensor(numpy_helper.to_array(t)).double().requires_grad_()
        for t in forward.graph.initializer
        if t.name in "wvg"
    }
    expected = torch.autograd.grad(loss(values), list(values.values()))
    got = gradients(build(forward, "loss", values, portable=portable), {"x": X})
    for name, gradient in zip(values, expected, strict=True):
        scale = gradient.abs().max().item()
        np.testing.assert_allclose(got[name], gradient, atol=1e-5 * scale, err_msg=name)


NORMALIZED = (
    "m (float[N,3] x, int64[K] i) => (float[N,2] n, float[K,2] y) "
    "{ h = MatMul(x, w) n = BatchNormalization(h, s, b, mean, var) y = Gather(n, i) }"
)


def normalized():
    ones, zeros = np.ones(2, "f"), np.zeros(2, "f")
    return model(NORMALIZED, w=(3, 2), s=ones, b=zeros, mean=zeros, var=ones)


def test_a_failed_step_leaves_running_statistics_alone():
    def loss(op, n, y):
        return op.Add(op.ReduceMean(n, keepdims=0), op.ReduceMean(op.Mul(y, y), keepdims=0))

    session = graphopt.Session(build(normalized(), loss))
    session.step({"x": X, "i": np.array([0])})
    before = session.state
    with pytest.raises(RuntimeError, match="the state is as it was"):
        session.step({"x": X, "i": np.array([99])})
    assert all(np.array_equal(value, session.state[name]) for name, value in before.items())
    assert not np.array_equal(before["mean"], [0, 0])


def test_a_plain_run_leaves_the_callers_arrays_alone():
    def loss(op, n, y):
        return op.Add(op.ReduceMean(n, keepdims=0), op.ReduceMean(op.Mul(y, y), keepdims=0))

    graph = build(normalized(), loss)
    session = onnxruntime.InferenceSession(graph.model.SerializeToString())
    feeds = {c.input: full(c) for c in graph.carried} | {"x": X, "i": np.array([0])}
    copies = {name: array.copy() for name, array in feeds.items()}
    session.run(None, feeds)
    assert all(np.array_equal(array, feeds[name]) for name, array in copies.items())


def test_other_readers_of_a_running_statistic_see_the_old_one():
    forward = model(
        "m (float[N,3] x) => (float[N,2] y) { h = MatMul(x, w) "
        "n = BatchNormalization(h, s, b, mean, var) y = Add(n, mean) }",
        w=(3, 2), s=np.ones(2, "f"), b=np.zeros(2, "f"),
        mean=np.full(2, 5, "f"), var=np.ones(2, "f"),
    )  # fmt: skip
    session = graphopt.Session(build(forward, "mse"))
    y = session.step({"x": X, "labels": np.zeros((4, 2), "f")})["y"]
    np.testing.assert_allclose(y.mean(axis=0), [5, 5], atol=1e-5)


def test_a_parameter_that_is_an_output_is_reported_as_it_was():
    forward = model(
        "m (float[N,3] x) => (float[N,2] y, float[3,2] w) { y = MatMul(x, w) }", w=(3, 2)
    )
    graph = build(forward, "mse", output="y")
    session = graphopt.Session(graph)
    before = session.state["w"]
    outputs = session.step({"x": X, "labels": np.zeros((4, 2), "f")})
    assert np.array_equal(outputs["w"], before)
    assert not np.array_equal(session.state["w"], before)


def test_a_frozen_initializer_may_be_an_output():
    forward = model(
        "m (float[N,3] x) => (float[N,2] y, float[2] c) { h = MatMul(x, w) y = Add(h, c) }",
        w=(3, 2), c=(2,),
    )  # fmt: skip
    outputs = graphopt.Session(build(forward, "mse", "w", output="y")).step(
        {"x": X, "labels": np.zeros((4, 2), "f")}
    )
    assert outputs["c"].shape == (2,)


def test_initializers_that_are_inputs_too():
    """As models below IR version 4 have them."""
    forward = model("m (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }", w=(3, 2))
    forward.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, [3, 2]))
    forward.ir_version = 3
    session = graphopt.Session(build(forward, "mse"))
    assert [feed.name for feed in session.inputs] == ["x", "labels"]
    assert session.step({"x": X, "labels": np.zeros((4, 2), "f")})["updated"]


LOSSES = {
    "mse": np.zeros((4, 2), np.float16),
    "l1": np.zeros((4, 2), np.float16),
    "huber": np.zeros((4, 2), np.float16),
    "bce_with_logits": np.ones((4, 2), np.float16),
    "cross_entropy": np.array([0, 1, 1, 0]),
}


@pytest.mark.parametrize(("loss", "labels"), LOSSES.items(), ids=LOSSES)
def test_float16_models(loss, labels):
    w = RNG.normal(size=(3, 2)).astype(np.float16)
    forward = model("m (float16[N,3] x) => (float16[N,2] y) { y = MatMul(x, w) }", w=w)
    session = graphopt.Session(build(forward, loss))
    losses = [
        float(session.step({"x": X.astype(np.float16), "labels": labels})["loss"])
        for _ in range(20)
    ]
    assert session.state["w"].dtype == np.float16
    assert session.state["mean_square.w"].dtype == np.float32
    assert losses[-1] < losses[0]


def test_labels_are_checked_where_the_number_of_classes_is_open():
    forward = model("m (float[N,3] x, float[3,C] v) => (float[N,C] y) "
                    "{ d = MatMul(x, w) y = MatMul(d, v) }", w=(3, 3))  # fmt: skip
    session = graphopt.Session(build(forward, "cross_entropy"))
    feeds = {"x": X, "v": RNG.normal(size=(3, 5)).astype("f")}
    session.step(feeds | {"labels": np.array([0, 4, 2, 1])})
    before = session.state
    for bad in (5, -1, 10**9, -(10**9)):
        with pytest.raises(RuntimeError, match="out of data bounds"):
            session.step(feeds | {"labels": np.array([0, bad, 2, 1])})
    assert all(np.array_equal(value, session.state[name]) for name, value in before.items())


@pytest.mark.parametrize("ignored", [None, -1, 1])
def test_labels_of_a_loss_in_the_model_are_checked(ignored):
    attributes = "" if ignored is None else f"<ignore_index = {ignored}>"
    forward = model(
        "m (float[N,3] x, int64[N] t) => (float loss) { y = MatMul(x, w) u = Sub(t, one) "
        f"loss = SoftmaxCrossEntropyLoss{attributes}(y, u) }}",
        w=(3, 3), one=np.array(1),
    )  # fmt: skip
    session = graphopt.Session(build(forward, "loss"))
    labels = np.array([1, 2, 3, 1])
    outputs = session.step({"x": X, "t": labels})
    w = torch.tensor(numpy_helper.to_array(forward.graph.initializer[0])).double()
    expected = functional.cross_entropy(
        torch.tensor(X).double() @ w,
        torch.tensor(labels - 1),
        ignore_index=-100 if ignored is None else ignored,
    )
    np.testing.assert_allclose(outputs["loss"], expected, rtol=1e-5)
    for bad in (4, -7, 10**9):
        with pytest.raises(RuntimeError, match="out of data bounds"):
            session.step({"x": X, "t": np.array([1, bad, 3, 1])})
    if ignored == -1:
        session.step({"x": X, "t": np.array([1, 0, 3, 1])})


def test_a_loss_of_unknown_shape_must_have_one_element():
    text = ("m (float[N,3] x, int64[K] s) => (loss) { h = MatMul(x, w) k = Mul(h, h) "
            "r = Reshape(k, s) loss = ReduceSum<keepdims=0>(r, a) }")  # fmt: skip
    forward = model(text, w=(3, 2), a=np.array([0]))
    forward.graph.output[0].type.tensor_type.elem_type = 1
    session = graphopt.Session(build(forward, "loss"))
    before = session.state["w"]
    with pytest.raises(RuntimeError):
        session.step({"x": X, "s": np.array([4, 2])})
    assert np.array_equal(session.state["w"], before)
    session.step({"x": X, "s": np.array([8])})
    assert not np.array_equal(session.state["w"], before)


REFUSED = {
    "training mode is fed": (
        model("m (float[N,3] x, bool on) => (float[N,3] y) { h = MatMul(x, w) "
              "y = Dropout(h, r, on) }", w=(3, 3), r=np.float32(0.5).reshape(())),
        "training_mode is not a constant",
    ),
    "name of a gradient": (
        model("m (float[N,3] x, float[N,3] w_grad) => (float[N,3] y) { h = MatMul(x, w) "
              "y = Add(h, w_grad) }", w=(3, 3)),
        "the model has 'w_grad'",
    ),
    "name of a state": (
        onnx.parser.parse_model(HEADER + """m (float[N,3] x) => (float[N,3] y)
              <float[3] w = {1, 2, 3}, float[3] "mean_square.w" = {1, 2, 3}>
              { h = Mul(x, w) y = Mul(h, "mean_square.w") }"""),
        "is both a parameter and the state of one|has a value named",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("forward", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_refused(forward, message):
    loss = "y" if len(forward.graph.output[0].type.tensor_type.shape.dim) == 0 else "mse"
    with pytest.raises(ValueError, match=message):
        build(forward, loss)


def test_a_running_statistic_is_no_parameter():
    forward = normalized()
    params = [*graphopt.parameters(forward), graphopt.Parameter("mean", (2,))]
    with pytest.raises(ValueError, match="'mean' is a running statistic"):
        graphopt.training_graph(forward, "mse", graphopt.RMSProp(params), output="n")


def test_settings_are_no_parameters():
    forward = model(
        "m (float[N,3] x) => (float[N,3] y) { h = MatMul(x, w) c = Clip(h, lo, hi) "
        "y = Dropout(c, r) }",
        w=(3, 3), lo=np.float32(-1).reshape(()), hi=np.float32(1).reshape(()),
        r=np.float32(0.5).reshape(()),
    )  # fmt: skip
    assert [p.name for p in graphopt.parameters(forward)] == ["w"]


def test_arrays_of_the_other_byte_order():
    forward = model("m (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }", w=(3, 2))
    start = numpy_helper.to_array(forward.graph.initializer[0])
    session = graphopt.Session(build(forward, "mse"), parameters={"w": start.astype(">f4")})
    other = graphopt.Session(build(forward, "mse"))
    feeds = {"x": X, "labels": np.zeros((4, 2), "f")}
    swapped = {name: array.astype(">f4") for name, array in feeds.items()}
    assert session.step(swapped)["loss"] == other.step(feeds)["loss"]


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 1e39},
        {"learning_rate": [0.1, 1e39]},
        {"learning_rate": 10**400},
        {"weight_decay": 10**400},
        {"loss_scale": 1e39},
        {"loss_scale": 1e-46},
        {"loss_scale": 1e30, "weight_decay": 1e10},
        {"decay": 1e39},
    ],
    ids=str,
)
def test_what_float32_cannot_hold_is_refused(settings):
    with pytest.raises(ValueError, match=next(reversed(settings))):
        graphopt.RMSProp([graphopt.Parameter("w", (2,))], **settings)


def test_external_data(tmp_path):
    import onnx_ir as ir

    forward = model("m (float[N,3] x) => (float[N,2] y) { y = MatMul(x, w) }", w=(3, 2))
    path = tmp_path / "m.onnx"
    onnx.save(forward, path, save_as_external_data=True, location="m.data", size_threshold=0)
    feeds = {"x": X, "labels": np.zeros((4, 2), "f")}
    losses = {
        float(graphopt.Session(build(source, "mse")).step(feeds)["loss"])
        for source in (path, ir.load(path))
    }
    assert len(losses) == 1
    (tmp_path / "m.data").unlink()
    with pytest.raises(FileNotFoundError, match=r"m\.onnx.*m\.data.*'w'"):
        graphopt.parameters(path)


def test_files_that_are_not_regular(tmp_path):
    graph = graphopt.update_graph(graphopt.RMSProp([graphopt.Parameter("w", (2,))]))
    target, link, fifo = (tmp_path / name for name in ("real.onnx", "link.onnx", "fifo"))
    os.mkfifo(fifo)
    target.write_bytes(b"old")
    link.symlink_to(target)
    graph.save(link)
    assert link.is_symlink()
    assert graphopt.load(target).model == graph.model
    graph.save(tmp_path / ("n" * 245 + ".onnx"))
    with pytest.raises(OSError, match="not a regular file"):
        graph.save(fifo)
