"""Operators without a rule, which ONNX defines by others, behind a layer that is trained."""

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional

import graphopt
from tests.helpers.environments import both_gradients

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3, 3, 3)).astype("f")
S, B = RNG.normal(size=4).astype("f"), RNG.normal(size=4).astype("f")
S2, B2 = S[:2].copy(), B[:2].copy()
X = RNG.normal(size=(5, 3, 6, 6)).astype("f")


def mean_variance(h, axes=(0, 2, 3)):
    centered = h - h.mean(axes, keepdim=True)
    return centered / ((centered**2).mean(axes, keepdim=True).sqrt() + 1e-9)


OPERATORS = {
    "MeanVarianceNormalization": (
        17, "MeanVarianceNormalization(h)", lambda h, _s, _b: mean_variance(h)),
    "MeanVarianceNormalization axes": (
        17, "MeanVarianceNormalization<axes=[1,2]>(h)", lambda h, _s, _b: mean_variance(h, (1, 2))),
    "GroupNormalization 18": (
        18, "GroupNormalization<num_groups=2, epsilon=0.01>(h, s2, b2)",
        lambda h, s, b: functional.group_norm(
            h, 2, s[:2].repeat_interleave(2), b[:2].repeat_interleave(2), 0.01)),
    "GroupNormalization 21": (
        21, "GroupNormalization<num_groups=2>(h, s, b)",
        lambda h, s, b: functional.group_norm(h, 2, s, b, 1e-5)),
}  # fmt: skip


@pytest.mark.quick
@both_gradients
@pytest.mark.parametrize(("opset", "text", "compute"), OPERATORS.values(), ids=OPERATORS)
def test_train_as_in_pytorch(opset, text, compute, portable):
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> m (float[N,3,6,6] x) => (float[N,4,4,4] y) '
        f"{{ h = Conv(x, w) y = {text} }}"
    )
    arrays = {"w": W, "s": S, "b": B, "s2": S2, "b2": B2}
    used = {name: array for name, array in arrays.items() if f" {name}" in text or name == "w"}
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in used.items()
    )
    (weight,) = (p for p in graphopt.parameters(model) if p.name == "w")
    optimizer = graphopt.RMSProp([weight], learning_rate=0.01)
    session = graphopt.Session(graphopt.training_graph(model, "mse", optimizer, portable=portable))
    w = torch.tensor(W).double().requires_grad_()
    oracle = graphopt.reference.ReferenceRMSProp(optimizer, {"w": W.astype("d")})
    s, b = torch.tensor(S).double(), torch.tensor(B).double()
    for seed in range(3):
        labels = np.random.default_rng(seed).normal(size=(5, 4, 4, 4)).astype("f")
        y = compute(functional.conv2d(torch.tensor(X).double(), w), s, b)
        loss = functional.mse_loss(y, torch.tensor(labels).double())
        np.testing.assert_allclose(
            session.step({"x": X, "labels": labels})["loss"], loss.item(), rtol=1e-5
        )
        oracle.step({"w": torch.autograd.grad(loss, w)[0].numpy()})
        with torch.no_grad():
            w.copy_(torch.tensor(oracle.state["w"]))
    np.testing.assert_allclose(session.state["w"], oracle.state["w"], atol=1e-5)
