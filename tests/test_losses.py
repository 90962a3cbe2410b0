"""Losses: the value and the gradients against PyTorch in float64, and what is refused."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch.nn import functional

import graphopt


def net(signature, body, **initializers):
    text = f'<ir_version: 8, opset_import: ["": 17]> net {signature} {{ {body} }}'
    model = parser.parse_model(text)
    for name, array in initializers.items():
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    return model


def normal(*shape, seed=1):
    return np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def linear(batch):
    model = net(
        f"(float[{batch},3] x) => (float[{batch},4] y)",
        "h = MatMul(x, w) y = Add(h, b)",
        w=normal(3, 4),
        b=normal(4),
    )
    return model, lambda x, w, b: x @ w + b, (5, 3)


def conv1d(batch):
    model = net(
        f"(float[{batch},3,7] x) => (float[{batch},4,7] y)",
        "y = Conv <kernel_shape = [1]> (x, w, b)",
        w=normal(4, 3, 1),
        b=normal(4),
    )
    return model, functional.conv1d, (5, 3, 7)


def conv2d(batch):
    model = net(
        f"(float[{batch},3,2,6] x) => (float[{batch},4,2,6] y)",
        "y = Conv <kernel_shape = [1, 1]> (x, w, b)",
        w=normal(4, 3, 1, 1),
        b=normal(4),
    )
    return model, functional.conv2d, (5, 3, 2, 6)


def vector(batch):
    """Outputs of rank 1, and a scalar weight."""
    model = net(f"(float[{batch}] x) => (float[{batch}] y)", "y = Mul(x, w)", w=np.array(0.7))
    return model, lambda x, w: x * w, (6,)


def huber(op, prediction):
    target = op.input("labels", prediction.dtype, prediction.shape)
    error = op.Abs(op.Sub(prediction, target))
    inside = op.Mul(op.Mul(error, error), 0.5)
    return op.ReduceMean(op.Where(op.Less(error, 1.0), inside, op.Sub(error, 0.5)), keepdims=0)


def classes(shape):
    return np.random.default_rng(2).integers(0, shape[1], (shape[0], *shape[2:]))


def values(shape):
    return normal(*shape, seed=3)


def probabilities(shape):
    """In [0, 1], the ends included."""
    array = np.random.default_rng(4).uniform(0, 1, shape).astype(np.float32)
    array.flat[0], array.flat[1] = 0, 1
    return array


LOSSES = {
    "cross_entropy": ("cross_entropy", classes, functional.cross_entropy),
    "mse": ("mse", values, functional.mse_loss),
    "l1": ("l1", values, functional.l1_loss),
    "bce_with_logits": (
        "bce_with_logits",
        probabilities,
        functional.binary_cross_entropy_with_logits,
    ),
    "huber": ("huber", values, functional.huber_loss),
    "a function": (huber, values, functional.huber_loss),
}


def build(model, loss, loss_scale=1.0, **options):
    opt = graphopt.RMSProp(graphopt.parameters(model), loss_scale=loss_scale)
    return graphopt.training_graph(model, loss=loss, optimizer=opt, **options)


def run(graph, feeds):
    """All outputs of one step, and the inner gradient of every parameter, by name."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    names = [tensor.name for tensor in graph.forward({}).graph.initializer]
    for name in names:
        model.graph.output.append(
            helper.make_tensor_value_info(f"{name}_grad", TensorProto.FLOAT, None)
        )
    start = {c.input: np.full(c.shape, c.initial, c.dtype) for c in graph.carried}
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    outputs = [value.name for value in session.get_outputs()]
    results = dict(zip(outputs, session.run(None, feeds | start), strict=True))
    return results, {name: results[f"{name}_grad"] for name in names}


def compare(graph, forward, loss, feeds, labels="labels", scale=1.0):
    results, gradients = run(graph, feeds)
    weights = {
        tensor.name: torch.tensor(
            numpy_helper.to_array(tensor).astype(np.float64), requires_grad=True
        )
        for tensor in graph.forward({}).graph.initializer
    }
    target = torch.tensor(feeds[labels])
    target = target.double() if target.is_floating_point() else target
    expected = loss(forward(torch.tensor(feeds["x"]).double(), *weights.values()), target)
    expected_gradients = torch.autograd.grad(expected, list(weights.values()))
    assert results["loss"].shape == ()
    np.testing.assert_allclose(results["loss"], expected.item(), rtol=1e-5)
    largest = max(gradient.abs().max().item() for gradient in expected_gradients)
    assert largest > 0
    for (name, got), want in zip(gradients.items(), expected_gradients, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(
            got, scale * want.numpy(), rtol=0, atol=1e-5 * scale * largest, err_msg=name
        )
    return results


@pytest.mark.quick
@pytest.mark.parametrize("batch", ["N", 0], ids=["dynamic", "static"])
@pytest.mark.parametrize(
    ("name", "model_of"),
    [
        (name, model_of)
        for name in LOSSES
        for model_of in (linear, conv1d, conv2d, vector)
        if (name, model_of) != ("cross_entropy", vector)  # which takes classes on axis 1
    ],
)
def test_loss(name, model_of, batch):
    loss, labels_of, oracle = LOSSES[name]
    x = normal(*model_of("N")[2], seed=5)
    model, forward, _ = model_of(batch or len(x))
    output = tuple(model.graph.output[0].type.tensor_type.shape.dim)
    labels = labels_of((len(x), *(dim.dim_value for dim in output[1:])))
    graph = build(model, loss)
    declared = {value.name: value.type.tensor_type for value in graph.model.graph.input}["labels"]
    dims = [dim.dim_value or dim.dim_param for dim in declared.shape.dim]
    assert dims == [batch or len(x), *labels.shape[1:]]
    assert helper.tensor_dtype_to_np_dtype(declared.elem_type) == labels.dtype
    compare(graph, forward, oracle, {"x": x, "labels": labels})


@pytest.mark.parametrize("scale", [1024.0, 0.25])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_scale(name, scale):
    """It multiplies the gradients, not the loss that is reported."""
    loss, labels_of, oracle = LOSSES[name]
    model, forward, shape = linear("N")
    feeds = {"x": normal(*shape, seed=5), "labels": labels_of((shape[0], 4))}
    compare(build(model, loss, scale), forward, oracle, feeds, scale=scale)


def logits_model(shape):
    """The weights are the logits themselves, so that each has its own gradient."""
    dims = ",".join(map(str, shape))
    model = net(f"(float[{dims}] x) => (float[{dims}] y)", "y = Add(x, w)", w=np.zeros(shape))
    return model, lambda x, w: x + w


EDGES = [0.0, -0.0, 1e-8, -1e-8, 1e-3, -1e-3, 15.0, -15.0, 30.0, -30.0, 100.0, -100.0]


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("logit", EDGES)
def test_bce_at_the_edges(logit, label):
    """Each alone, since a large neighbour would hide the error of a small gradient."""
    model, _ = logits_model((1, 1))
    x, labels = np.full((1, 1), logit, np.float32), np.full((1, 1), label, np.float32)
    results, gradients = run(build(model, "bce_with_logits"), {"x": x, "labels": labels})
    logits = torch.tensor(x).double().requires_grad_()
    loss = functional.binary_cross_entropy_with_logits(logits, torch.tensor(labels).double())
    (expected,) = torch.autograd.grad(loss, [logits])
    np.testing.assert_allclose(results["loss"], loss.item(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradients["w"], expected, rtol=1e-6, atol=1.2e-7)


@pytest.mark.parametrize("zeros", [1, 4, 12])
def test_bce_with_logits_exactly_zero(zeros):
    model, forward = logits_model((3, 4))
    x = normal(3, 4)
    x.flat[:zeros] = 0
    feeds = {"x": x, "labels": probabilities((3, 4))}
    oracle = functional.binary_cross_entropy_with_logits
    compare(build(model, "bce_with_logits"), forward, oracle, feeds)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2)])
@pytest.mark.parametrize("size", [100.0, 1e4])
def test_cross_entropy_of_extreme_logits(size, shape):
    model, forward = logits_model(shape)
    x = size * np.sign(normal(*shape))
    feeds = {"x": x.astype(np.float32), "labels": classes(shape)}
    compare(build(model, "cross_entropy"), forward, functional.cross_entropy, feeds)


def test_l1_at_zero():
    """Where prediction and label agree, the gradient is 0 as in PyTorch."""
    model, forward = logits_model((2, 3))
    x = normal(2, 3)
    labels = x.copy()
    labels[0] += 1
    feeds = {"x": x, "labels": labels}
    results = compare(build(model, "l1"), forward, functional.l1_loss, feeds)
    np.testing.assert_array_equal(results["w_grad"][1], np.zeros(3))


@pytest.mark.parametrize("error", [0.0, 0.5, 1 - 2**-24, 1.0, 1 + 2**-23, 3.0, 1e6])
@pytest.mark.parametrize("sign", [1, -1])
def test_huber_at_its_edges(error, sign):
    """Where it turns from a square into a line, both have the same gradient."""
    model, forward = logits_model((2, 3))
    x = np.full((2, 3), sign * error, np.float32)
    x[0] = 0.25  # so that a gradient is not 0
    feeds = {"x": x, "labels": np.zeros((2, 3), np.float32)}
    compare(build(model, "huber"), forward, functional.huber_loss, feeds)


SEVERAL = """h = MatMul(x, w) a = Mul(h, h) k = ReduceSum <keepdims = 0> (a)
             cost = Sqrt(k) i = Cast <to = 7> (cost)"""


def several():
    """A model with outputs of all kinds: a matrix, two scalars, an integer."""
    return net(
        "(float[N,3] x) => (float[N,4] h, float cost, float[N,4] a, int64 i)",
        SEVERAL,
        w=normal(3, 4),
    )


def test_scalar_output_as_loss():
    graph = build(several(), "cost")
    x = normal(5, 3)
    results, gradients = run(graph, {"x": x})
    w = torch.tensor(normal(3, 4)).double().requires_grad_()
    cost = (torch.tensor(x).double() @ w).norm()
    np.testing.assert_allclose(results["loss"], cost.item(), rtol=1e-6)
    np.testing.assert_array_equal(results["loss"], results["cost"])
    (expected,) = torch.autograd.grad(cost, [w])
    np.testing.assert_allclose(gradients["w"], expected, atol=1e-5 * expected.abs().max().item())


def test_scalar_output_called_loss():
    model = net(
        "(float[N,3] x) => (float loss)",
        "h = MatMul(x, w) a = Abs(h) loss = ReduceMean <keepdims = 0> (a)",
        w=normal(3, 4),
    )
    graph = build(model, "loss")
    names = [value.name for value in graph.model.graph.output]
    assert names == ["loss", "updated", "w.next", "mean_square.w.next", "global_step.next"]
    x = normal(5, 3)
    results, _ = run(graph, {"x": x})
    np.testing.assert_allclose(results["loss"], np.abs(x @ normal(3, 4)).mean(), rtol=1e-5)


@pytest.mark.parametrize(("name", "output"), [("loss_output", "h"), ("output", "a")])
def test_one_of_several_outputs(name, output):
    graph = build(several(), "mse", labels="target", **{name: output})
    feeds = {"x": normal(5, 3), "target": values((5, 4))}
    exponent = 1 if output == "h" else 2
    compare(graph, lambda x, w: (x @ w) ** exponent, functional.mse_loss, feeds, labels="target")


def test_function_of_several_outputs():
    def loss(op, h, cost, a, i):
        assert [value.name for value in (h, cost, a, i)] == ["h", "cost", "a", "i"]
        return op.Add(op.ReduceMean(a, keepdims=0), op.Mul(cost, 0.5))

    graph = build(several(), loss)
    results, _ = run(graph, {"x": normal(5, 3)})
    expected = results["a"].mean() + 0.5 * results["cost"]
    np.testing.assert_allclose(results["loss"], expected, rtol=1e-6)


def test_function_of_the_chosen_output():
    graph = build(several(), lambda op, a: op.ReduceSum(a, keepdims=0), output="a")
    results, gradients = run(graph, {"x": normal(5, 3)})
    np.testing.assert_allclose(results["loss"], results["a"].sum(), rtol=1e-6)
    expected = 2 * normal(5, 3).T @ results["h"]
    np.testing.assert_allclose(gradients["w"], expected, rtol=1e-5)


ONE = ("(float[N,3] x) => (float[N,4] y)", "y = MatMul(x, w)")
RANK_1 = (
    "(float[N,3] x) => (float[N] y)",
    "h = MatMul(x, w) y = ReduceMax<axes=[1], keepdims=0>(h)",
)
LABELS = ("(float[N,3] labels) => (float[N,4] y)", "y = MatMul(labels, w)")
HAS_LOSS = ("(float[N,3] x) => (float[N,4] loss)", "loss = MatMul(x, w)")
MANY = ("(float[N,3] x) => (float[N,4] h, float cost, float[N,4] a, int64 i)", SEVERAL)
INTEGER = ("(float[N,3] x) => (int64[N,4] y)", "h = MatMul(x, w) y = Cast <to = 7> (h)")
SIZE_1 = ("(float[N,3] x) => (float[1,1] y)", "h = MatMul(x, w) y = ReduceMax(h)")
ERRORS = {
    "unknown": (ONE, {"loss": "hinge"}, ValueError, "'hinge'.*'cross_entropy'.*'mse'.*'y'"),
    "other case": (ONE, {"loss": "MSE"}, ValueError, "'MSE'"),
    "empty name": (ONE, {"loss": ""}, ValueError, "loss"),
    "an input": (ONE, {"loss": "x"}, ValueError, "'x'"),
    "output not scalar": (ONE, {"loss": "y"}, ValueError, "shape.*4.*scalar"),
    "function not scalar": (ONE, {"loss": lambda op, y: op.Mul(y, y)}, ValueError, "scalar"),
    "size 1": (SIZE_1, {"loss": "y"}, ValueError, r"\[1, 1\].*scalar"),
    "number": (ONE, {"loss": 3}, TypeError, "loss: got int"),
    "none": (ONE, {"loss": None}, TypeError, "loss: got NoneType"),
    "function returns nothing": (ONE, {"loss": lambda op, y: None}, TypeError, "NoneType"),  # noqa: ARG005
    "function returns a number": (ONE, {"loss": lambda op, y: 1.0}, TypeError, "float"),  # noqa: ARG005
    "function returns a tuple": (
        ONE,
        {"loss": lambda op, y: (op.ReduceMean(y, keepdims=0),)},
        TypeError,
        "tuple",
    ),
    "several outputs": (MANY, {"loss": "mse"}, ValueError, "several.*'h'.*'a'.*output="),
    "wrong output": (ONE, {"loss": "mse", "output": "z"}, ValueError, "'z'.*'y'"),
    "wrong output, function": (MANY, {"loss": huber, "output": "z"}, ValueError, "'z'.*'h'"),
    "wrong output, named loss": (MANY, {"loss": "cost", "output": "z"}, ValueError, "'z'"),
    "integer scalar": (MANY, {"loss": "i"}, ValueError, "int64"),
    "integer output": (INTEGER, {"loss": "mse"}, ValueError, "(?i)int64"),
    "integer logits": (INTEGER, {"loss": "bce_with_logits"}, ValueError, "(?i)int64"),
    "integer classes": (INTEGER, {"loss": "cross_entropy"}, ValueError, "(?i)int64"),
    "rank 1": (RANK_1, {"loss": "cross_entropy"}, ValueError, r"'y'.*\['N'\].*classes"),
    "labels taken": (LABELS, {"loss": "mse"}, ValueError, "'labels'"),
    "labels are an output": (ONE, {"loss": "mse", "labels": "y"}, ValueError, "'y'"),
    "labels are a parameter": (ONE, {"loss": "mse", "labels": "w"}, ValueError, "'w'"),
    "no output to choose": (
        MANY,
        {"loss": "cost", "output": "h"},
        ValueError,
        "loss_output.*leave",
    ),
    "no labels to name": (MANY, {"loss": "cost", "labels": "target"}, ValueError, "^labels.*leave"),
    "labels of its own": (ONE, {"loss": huber, "labels": "target"}, ValueError, "^labels.*leave"),
    "both names": (
        MANY,
        {"loss": "mse", "output": "h", "loss_output": "h"},
        TypeError,
        "older name",
    ),
    "loss taken": (HAS_LOSS, {"loss": "mse"}, ValueError, "'loss'"),
}


@pytest.mark.parametrize(
    ("model", "options", "error", "message"), ERRORS.values(), ids=ERRORS.keys()
)
def test_errors(model, options, error, message):
    model = net(*model, w=normal(3, 4))
    before = model.SerializeToString()
    with pytest.raises(error, match=message) as caught:
        build(model, **options)
    assert type(caught.value) is error
    assert model.SerializeToString() == before


def test_labels_of_any_name():
    model, forward, shape = linear("N")
    graph = build(model, "mse", labels="wanted")
    feeds = {"x": normal(*shape), "wanted": values((shape[0], 4))}
    compare(graph, forward, functional.mse_loss, feeds, labels="wanted")


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_output_of_unknown_rank(loss):
    """Shape inference finds it; what cannot be found is refused."""
    model = net("(float[N,3] x) => (y)", "y = MatMul(x, w)", w=normal(3, 4))
    labels = classes((5, 4)) if loss == "cross_entropy" else values((5, 4))
    compare(
        build(model, loss),
        lambda x, w: x @ w,
        LOSSES[loss][2],
        {"x": normal(5, 3), "labels": labels},
    )
