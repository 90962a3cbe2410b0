"""Gradients of the cross entropies that ONNX has as operators."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch.nn import functional

from graphopt.gradients import differentiate, prepare
from tests.helpers.gradient_oracle import Case, cases, check, normal, onnx_gradients, onnx_model

CLASSES = 5


def labels(*shape, dtype=np.int64):
    return np.random.default_rng(0).integers(0, CLASSES, shape).astype(dtype)


def ignoring(array, value):
    array = array.copy()
    array.flat[::3] = value
    return array


def case(name, shape, reduction, weighted=False, ignore=None, dtype=np.int64, opset=17):
    """``name`` of logits of this shape, in ONNX and in PyTorch."""
    torch_function = {
        "SoftmaxCrossEntropyLoss": functional.cross_entropy,
        "NegativeLogLikelihoodLoss": functional.nll_loss,
    }[name]
    targets = labels(shape[0], *shape[2:], dtype=dtype)
    if ignore is not None:
        targets = ignoring(targets, ignore)
    inputs = {"x": normal(*shape), "t": targets}
    attributes = f'reduction="{reduction}"'
    options = {"reduction": reduction}
    if ignore is not None:
        attributes += f", ignore_index={ignore}"
        options["ignore_index"] = ignore
    if weighted:
        inputs["w"] = np.abs(normal(CLASSES, seed=3)) + 0.1

    def compute(x, t, w=None):
        return torch_function(x, t.long(), weight=w, **options)

    return Case(
        f"y = {name}<{attributes}>({', '.join(inputs)})",
        inputs,
        compute,
        constants=("w",),
        opset=opset,
    )


NAMES = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
CASES = {
    f"{name} {shape} {reduction} weighted={weighted} ignore={ignore}": case(
        name, shape, reduction, weighted, ignore
    )
    for name in NAMES
    for shape in ((4, CLASSES), (3, CLASSES, 2), (2, CLASSES, 3, 2))
    for reduction in ("mean", "sum", "none")
    for weighted, ignore in ((False, None), (True, None), (False, 2), (True, -100))
}
OTHER_CASES = {
    f"{name} {what}": case(name, (count, CLASSES), "mean", **options)
    for what, count, options in (
        ("int32", 4, {"dtype": np.int32}),
        ("opset 21", 4, {"opset": 21}),
        ("of one", 1, {}),
    )
    for name in NAMES
}


@pytest.mark.quick
@cases(CASES | OTHER_CASES)
def test_gradients(case, dynamic):
    check(case, dynamic)


LARGE = Case(
    "y = SoftmaxCrossEntropyLoss(x, t)",
    {"x": 200 * normal(4, CLASSES), "t": labels(4)},
    functional.cross_entropy,
)


@cases({"large logits": LARGE})
def test_nothing_overflows(case, dynamic):
    check(case, dynamic)


IGNORED = {
    f"{name} weighted={weighted}": Case(
        f"y = {name}<ignore_index=2>({'x, t, w' if weighted else 'x, t'})",
        {"x": normal(3, CLASSES), "t": np.full(3, 2)}
        | ({"w": np.abs(normal(CLASSES))} if weighted else {}),
        lambda x, t, w=None, name=name: {
            "SoftmaxCrossEntropyLoss": functional.cross_entropy,
            "NegativeLogLikelihoodLoss": functional.nll_loss,
        }[name](x, t, weight=w, ignore_index=2),
        constants=("w",),
    )
    for name in NAMES
    for weighted in (False, True)
}


@cases(IGNORED)
def test_where_all_labels_are_ignored_the_gradient_is_0(case, dynamic):
    check(case, dynamic)
    np.testing.assert_array_equal(onnx_gradients(case, ["x"], dynamic=dynamic)["x"], 0)


def test_class_weights_of_0():
    """All of them: unlike with PyTorch, the gradient is 0."""
    case = Case(
        "y = SoftmaxCrossEntropyLoss(x, t, w)",
        {"x": normal(3, CLASSES), "t": labels(3), "w": np.zeros(CLASSES, np.float32)},
        lambda x, *_: x.sum(),
        constants=("w",),
    )
    np.testing.assert_array_equal(onnx_gradients(case, ["x"], dynamic=False)["x"], 0)


@pytest.mark.parametrize("dtype", [10, 11], ids=["float16", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_other_floats(name, dtype):
    case = Case(
        f"d = Cast<to={dtype}>(x) l = LogSoftmax(d) e = {name}(l, t) y = Cast<to=1>(e)",
        {"x": normal(4, CLASSES), "t": labels(4)},
        functional.cross_entropy,
        tolerance=2e-3 if dtype == 10 else 5e-6,
    )
    check(case, dynamic=False)


LOG_PROB = {
    name: Case(
        text,
        {"x": normal(3, CLASSES, 2), "t": labels(3, 2)},
        compute,
        outputs=outputs,
    )
    for name, text, compute, outputs in (
        (
            "beside the loss",
            "y, p = SoftmaxCrossEntropyLoss(x, t)",
            lambda x, t: (functional.cross_entropy(x, t), x.log_softmax(1)),
            ("y", "p"),
        ),
        (
            "without the loss",
            "y, p = SoftmaxCrossEntropyLoss(x, t)",
            lambda x, _: x.log_softmax(1),
            ("p",),
        ),
        (
            "of single losses, and read",
            'y, l = SoftmaxCrossEntropyLoss<reduction="none">(x, t) p = Exp(l)',
            lambda x, t: (functional.cross_entropy(x, t, reduction="none"), x.softmax(1)),
            ("y", "p"),
        ),
    )
}


@cases(LOG_PROB)
def test_log_prob(case, dynamic):
    check(case, dynamic)


@pytest.mark.parametrize("is_loss_trained", [True, False])
def test_log_prob_as_an_output(is_loss_trained):
    x = normal(3, CLASSES)
    case = Case(
        "y, p = SoftmaxCrossEntropyLoss(x, t)",
        {"x": x, "t": labels(3), "w": normal(1)},
        lambda x, t, _: functional.cross_entropy(x, t),
    )
    trained = ["x" if is_loss_trained else "w"]
    model = onnx_model(case, trained, dynamic=False)
    if not is_loss_trained:
        model.graph.node[-1].input.append("w0")
        model.graph.node.insert(0, onnx.helper.make_node("ReduceSum", ["w"], ["w0"], keepdims=0))
    model.graph.output.append(onnx.helper.make_tensor_value_info("p", 1, [3, CLASSES]))
    prepared, statistics = prepare(model, trained)
    differentiate(prepared, trained, prepared.graph.outputs[0], statistics)
    proto = ir.to_proto(prepared)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(["p"], {name: case.inputs[name] for name in trained})
    np.testing.assert_allclose(got, torch.tensor(x).log_softmax(1), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_class_weights_that_depend_on_a_parameter_are_refused(name):
    case = Case(
        f"v = Exp(w) y = {name}(x, t, v)",
        {"x": normal(3, CLASSES), "t": labels(3), "w": normal(CLASSES)},
        lambda x, *_: x.sum(),
    )
    with pytest.raises(ValueError, match=rf"{name} 'y': its input 'v' .*make it a constant"):
        onnx_gradients(case, ["x", "w"], dynamic=False)


def test_the_default_is_the_mean():
    x, t = normal(4, CLASSES), labels(4)
    check(Case("y = SoftmaxCrossEntropyLoss(x, t)", {"x": x, "t": t},
               lambda x, t: -torch.log_softmax(x, 1)[range(4), t].mean()), False)  # fmt: skip
