"""Gradients as outputs of a training graph: without the loss scale, before anything else."""

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import DynamicLossScale, RMSProp, Session, schedules
from models.zoo import ZOO

SCALES = {
    "none": 1.0,
    "number": 8.0,
    "dynamic": DynamicLossScale(1024.0),
    "fed": schedules.FromCaller("loss_scale"),
}


def graph(outputs, *, scale=1.0, **settings):
    model = ZOO["mlp"].build()
    parameters = graphopt.parameters(model)
    opt = RMSProp(parameters, 1e-3, loss_scale=scale, weight_decay=0.1, **settings)
    made = graphopt.training_graph(model, "cross_entropy", opt, gradient_outputs=outputs)
    return made, [parameter.name for parameter in parameters]


def feeds(scale):
    batch = ZOO["mlp"].feeds(np.random.default_rng(0), 8)
    fed = isinstance(scale, schedules.FromCaller)
    return batch | ({"loss_scale": np.array(64, np.float32)} if fed else {})


def test_they_are_those_of_the_loss():
    """By differences of the loss along each of them."""
    made, names = graph(True, clip_norm=1e-3)
    start = Session(made).state
    outputs = Session(made).step(feeds(1.0))
    for name in names:
        gradient = outputs[f"{name}_grad"].astype(np.float64)
        assert gradient.shape == start[name].shape
        length = np.linalg.norm(gradient)
        step = 1e-2 * gradient / length
        losses = [
            float(
                Session(made, {name: (start[name] + s * step).astype(np.float32)}).step(feeds(1.0))[
                    "loss"
                ]
            )
            for s in (1, -1)
        ]
        np.testing.assert_allclose((losses[0] - losses[1]) / 2e-2, length, rtol=2e-3, err_msg=name)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_they_are_the_same_whatever_the_scale_is(scale):
    made, names = graph(True, scale=scale, clip_norm=1e-3)
    outputs = Session(made).step(feeds(scale))
    expected = Session(graph(True)[0]).step(feeds(1.0))
    for name in [f"{name}_grad" for name in names]:
        np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-5, atol=1e-8)


def test_some():
    made, names = graph([names_of()[1]])
    reported = set(Session(made).step(feeds(1.0)))
    assert {name for name in names if f"{name}_grad" in reported} == {names[1]}


def names_of():
    return [parameter.name for parameter in graphopt.parameters(ZOO["mlp"].build())]


def test_training_is_the_same_with_them():
    plain, reporting = (Session(graph(outputs)[0]) for outputs in (False, True))
    for _ in range(3):
        plain.step(feeds(1.0))
        reporting.step(feeds(1.0))
    for name, array in plain.state.items():
        np.testing.assert_allclose(reporting.state[name], array, rtol=1e-5, atol=1e-7, err_msg=name)


WRONG = {
    "a name": ("w", TypeError, "gradient_outputs: got 'w', expected True, False or a list"),
    "a number": (1, TypeError, "gradient_outputs: got 1"),
    "unknown": (["nothing"], ValueError, "gradient_outputs: got 'nothing', which is not a"),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(("outputs", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(outputs, kind, message):
    with pytest.raises(kind, match=message):
        graph(outputs)


@pytest.mark.parametrize("scale", [1e5, DynamicLossScale(1e5)], ids=["number", "dynamic"])
def test_half_precision_need_not_hold_the_scale(scale):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> net (float[N,2] x) => (float[N,1] y)
        <float16[2,1] w = {1, 2}> { v = Cast<to = 1>(w) y = MatMul(x, v) }"""
    )
    opt = RMSProp(graphopt.parameters(model), 1e-3, loss_scale=scale)
    made = graphopt.training_graph(model, "mse", opt, gradient_outputs=True)
    x = np.array([[1e-3, 2e-3]], np.float32)
    y = np.array([[-0.1]], np.float32)
    got = Session(made).step({"x": x, "labels": y})["w_grad"]
    w = Session(made).state["w"].astype(np.float32)
    wanted = 2 * (x @ w - y) * x.T
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, wanted, rtol=2e-3)
