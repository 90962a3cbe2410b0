"""Gradients of the cross entropies that ONNX has as operators."""

import numpy as np
import torch
from gradient_oracle import Case, cases, check, normal
from torch.nn import functional

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
CASES |= {f"{name} int32": case(name, (4, CLASSES), "mean", dtype=np.int32) for name in NAMES}
CASES |= {f"{name} opset 21": case(name, (4, CLASSES), "mean", opset=21) for name in NAMES}
CASES |= {f"{name} of one": case(name, (1, CLASSES), "mean") for name in NAMES}


@cases(CASES)
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


def test_the_default_is_the_mean():
    x, t = normal(4, CLASSES), labels(4)
    check(Case("y = SoftmaxCrossEntropyLoss(x, t)", {"x": x, "t": t},
               lambda x, t: -torch.log_softmax(x, 1)[range(4), t].mean()), False)  # fmt: skip
