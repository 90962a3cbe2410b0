"""Each ONNX function of the update alone, through ONNX Runtime, against its formula."""

from importlib.resources import files

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from graphopt import Parameter, RMSProp
from graphopt.update import core, functions

SHAPES = {"0-d": (), "1-d": (7,), "size 1": (1, 1), "2-d": (3, 5)}
LR, DECAY, MOMENTUM, EPSILON = np.float32(0.3), 0.8, 0.7, 1e-2


def text(name):
    """The ONNX text of a stage or of one of the composed functions."""
    return core.text(COMPOSED[name]) if name in COMPOSED else functions.stage(name)


def run(name, operands, opset=17, **attributes):
    """What a model of this one call returns."""
    loaded = functions.load([text(name)], opset)
    function = next(f for f in loaded if f.name == name)
    inputs = [
        helper.make_tensor_value_info(formal, TensorProto.FLOAT, array.shape)
        for formal, array in zip(function.input, operands, strict=True)
    ]
    shape = max((array.shape for array in operands), key=len)
    outputs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, shape) for o in function.output]
    node = helper.make_node(
        name, list(function.input), list(function.output), domain="graphopt", **attributes
    )
    model = helper.make_model(
        helper.make_graph([node], "alone", inputs, outputs),
        functions=loaded,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("graphopt", 1)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(zip(function.input, operands, strict=True)))


def optimizer(**settings):
    return RMSProp([Parameter("w", (3,))], **settings)


COMPOSED = {
    core.name(opt): opt
    for opt in (
        optimizer(centered=centered, **settings)
        for centered in (False, True)
        for settings in (
            {},
            {"epsilon_inside_root": False},
            *(
                {"momentum": MOMENTUM, "epsilon_inside_root": inside, "nesterov": nesterov}
                | {"learning_rate_inside_moment": rate_inside}
                for inside in (True, False)
                for nesterov in (True, False)
                for rate_inside in (True, False)
            ),
        )
    )
}


def average(old, value):
    return DECAY * old + (1 - DECAY) * value


def composed(opt):
    """The formula of a composed function, its operands and its attributes."""

    def formula(w, g, s, *rest):
        lr, m = rest[-1], rest[-2] if opt.momentum else 0
        s = variance = average(s, g * g)
        means = []
        if opt.centered:
            means = [average(rest[0], g)]
            variance = s - means[0] ** 2
        with np.errstate(invalid="ignore"):
            if opt.epsilon_inside_root:
                d = np.sqrt(variance + EPSILON)
            else:
                d = np.sqrt(variance) + EPSILON
        u = g / d if opt.momentum and not opt.learning_rate_inside_moment else lr * g / d
        m1 = opt.momentum * m + u
        step = opt.momentum * m1 + u if opt.nesterov else m1
        if opt.momentum and not opt.learning_rate_inside_moment:
            step = lr * step
        moves = d > 0 if opt.centered else np.ones(d.shape, bool)
        moments = [np.where(moves, m1, m)] if opt.momentum else []
        return np.where(moves, w - step, w), s, *means, *moments

    kinds = ["w", "g", "s", *(["a"] if opt.centered else []), *(["m"] if opt.momentum else [])]
    attributes = {"decay": DECAY, "epsilon": EPSILON}
    return (
        formula,
        " ".join([*kinds, "lr"]),
        attributes | ({"momentum": MOMENTUM} if opt.momentum else {}),
    )


def centralize(g):
    return g - g.mean(axis=1, keepdims=True)


CASES = {
    "MovingAverage": (average, "average value", {"decay": DECAY}),
    "Moment": (lambda m, u: MOMENTUM * m + u, "m u", {"momentum": MOMENTUM}),
    "Unscale": (lambda g: g / 1024, "g", {"loss_scale": 1024.0}),
    "WeightDecay": (lambda w, g, lr: g + lr * w, "w g lr", {}),
    "DecoupledWeightDecay": (lambda w, lr, k: w - lr * k * w, "w lr lr", {}),
    "Denominator": (lambda v: np.sqrt(v + EPSILON), "variance", {"epsilon": EPSILON}),
    "DenominatorEpsilonOutside": (
        lambda v: np.sqrt(v) + EPSILON,
        "variance",
        {"epsilon": EPSILON},
    ),
    "Guard": (lambda d, old, new: np.where(d > 0, new, old), "d old new", {}),
    **{name: composed(opt) for name, opt in COMPOSED.items()},
}
# The functions that some need, themselves not included.
NEEDED = {
    "MovingAverage": [],
    "Guard": [],
    "RMSProp": ["Denominator", "MovingAverage"],
    "RMSPropMomentum": ["Denominator", "Moment", "MovingAverage"],
    "CenteredRMSProp": ["Denominator", "Guard", "MovingAverage"],
    "CenteredRMSPropNesterovEpsilonOutsideRateOutside": [
        "DenominatorEpsilonOutside",
        "Guard",
        "Moment",
        "MovingAverage",
    ],
}


def operand(kind, shape, rng):
    if kind == "lr":
        return np.array(LR)
    if kind in ("s", "variance"):  # a mean square, for some elements below the squared mean
        return rng.uniform(0, 0.5, shape).astype(np.float32)
    return np.asarray(rng.standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("name", CASES)
def test_formula(name, shape):
    formula, kinds, attributes = CASES[name]
    rng = np.random.default_rng(1)
    guarded = 0
    for _ in range(10):
        operands = [operand(kind, shape, rng) for kind in kinds.split()]
        expected = formula(*(array.astype(np.float64) for array in operands))
        expected = expected if isinstance(expected, tuple) else (expected,)
        results = run(name, operands, **attributes)
        for got, want in zip(results, expected, strict=True):
            assert got.shape == shape
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
        guarded += int((results[0] == operands[0]).sum())
    if name.startswith("Centered"):
        assert guarded > 0
        assert guarded < 10 * np.prod(shape)


@pytest.mark.parametrize("shape", [(4, 6), (1, 1), (3, 1)], ids=str)
def test_centralize(shape):
    g = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (got,) = run("Centralize", [g])
    np.testing.assert_allclose(got, centralize(g.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("enabled", [True, False])
def test_mask(enabled):
    old, new = np.ones(3, np.float32), np.full(3, 2, np.float32)
    loaded = functions.load([text("Mask")], 17)
    info = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Mask", ["e", "old", "new"], ["y"], domain="graphopt")],
            "mask",
            [info("e", TensorProto.BOOL, []), info("old", 1, [3]), info("new", 1, [3])],
            [info("y", TensorProto.FLOAT, [3])],
        ),
        functions=loaded,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("graphopt", 1)],
        ir_version=8,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (got,) = session.run(None, {"e": np.array(enabled), "old": old, "new": new})
    np.testing.assert_array_equal(got, new if enabled else old)


def test_guard_at_the_edge():
    """Exactly zero and NaN keep the old value."""
    radicand = np.array([0, -0.0, np.nan, -np.inf, np.inf, 1e-38, -1e-38], np.float32)
    old, new = np.full(7, 1, np.float32), np.full(7, 2, np.float32)
    (kept,) = run("Guard", [radicand, old, new])
    np.testing.assert_array_equal(kept, [1, 1, 1, 1, 2, 2, 1])


def test_guard_does_not_let_nan_through():
    """A new value that is NaN does not touch a guarded element."""
    radicand, old = np.array([-1, 1], np.float32), np.array([3, 4], np.float32)
    (kept,) = run("Guard", [radicand, old, np.array([np.nan, 5], np.float32)])
    np.testing.assert_array_equal(kept, [3, 5])


@pytest.mark.parametrize("name", NEEDED)
def test_loading_pulls_in_what_is_called(name):
    loaded = functions.load([text(name)], 17)
    assert [function.name for function in loaded] == sorted([name, *NEEDED[name]])
    assert {function.domain for function in loaded} == {"graphopt"}


def test_loading_several_has_each_once():
    names = [function.name for function in functions.load(map(text, NEEDED), 17)]
    assert names == sorted({*NEEDED, *(name for needed in NEEDED.values() for name in needed)})


def test_every_function_is_tested():
    names = [path.name for path in files(functions).iterdir()]
    stages = {name.removesuffix(".onnxtxt") for name in names if "onnxtxt" in name}
    assert stages == {*CASES, "Centralize", "Mask"} - set(COMPOSED)


@pytest.mark.parametrize("opset", [17, 18, 21])
def test_opset(opset):
    for function in functions.load(map(text, ["CenteredRMSPropMomentum", "Unscale"]), opset):
        imported = {entry.domain: entry.version for entry in function.opset_import}
        assert imported == {"": opset, "graphopt": 1}
    g = np.array([2.0], np.float32)
    np.testing.assert_array_equal(run("Unscale", [g], opset, loss_scale=4.0), [[0.5]])


def test_unknown_function():
    with pytest.raises(FileNotFoundError):
        functions.stage("Nonexistent")
