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


# Functions whose attributes have defaults: what is called, and what that is without functions.
DEFAULTS = {
    "by default": ("y = my.soft(h)", "y = Softmax<axis = 0>(h)"),
    "given": ("y = my.soft<axis = 1>(h)", "y = Softmax<axis = 1>(h)"),
    "called by a function": ("y = my.outer(h)", "y = Softmax<axis = 0>(h)"),
    "given to that function": ("y = my.outer<at = 1>(h)", "y = Softmax<axis = 1>(h)"),
    "a constant": (
        "y = my.scaled(h)", "c = Constant<value_float = 0.25>() y = Mul(h, c)",
    ),
    "twice": (
        "a = my.scaled<by = 3.0>(h) y = my.scaled(a)",
        "c = Constant<value_float = 0.75>() y = Mul(h, c)",
    ),
    "in a branch": (
        """y = If(on) <then_branch = yes () => (a) { a = my.soft(h) },
                       else_branch = no () => (b) { b = Identity(h) }>""",
        "y = Softmax<axis = 0>(h)",
    ),
}  # fmt: skip
FUNCTIONS = """
<domain: "my", opset_import: ["": 18]> soft <axis: int = 0> (x) => (y) {
    y = Softmax<axis: int = @axis>(x) }
<domain: "my", opset_import: ["": 18, "my": 1]> outer <at: int = 0> (x) => (y) {
    y = my.soft<axis: int = @at>(x) }
<domain: "my", opset_import: ["": 18]> scaled <by: float = 0.25> (x) => (y) {
    c = Constant<value_float: float = @by>() y = Mul(x, c) }"""


def step_and_proof(body, functions=""):
    """What a step reports of a network with this behind its product, and whether it is verified."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 18, "my": 1]>
        net (float[N,3] x, bool on) => (float[N,3] y) {{ h = MatMul(x, w) {body} }} {functions}"""
    )
    w = np.arange(9, dtype=np.float32).reshape(3, 3) / 9
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    opt = graphopt.RMSProp(graphopt.parameters(model))
    graph = graphopt.training_graph(model, "mse", opt, gradient_outputs=True)
    x, labels = np.random.default_rng(1).normal(size=(2, 4, 3)).astype("f")
    outputs = graphopt.Session(graph).step({"x": x, "labels": labels, "on": np.array(True)})
    return outputs, graphopt.verify(graph).verified


@pytest.mark.any_runtime
@pytest.mark.parametrize(("called", "plain"), DEFAULTS.values(), ids=DEFAULTS)
def test_functions_with_defaults(called, plain):
    got, verified = step_and_proof(called, FUNCTIONS)
    wanted, _ = step_and_proof(plain)
    assert verified
    for name in ("y", "loss", "w_grad"):
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-6, atol=1e-7)
