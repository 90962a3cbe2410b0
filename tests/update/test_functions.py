"""Each function of the update alone, through ONNX Runtime, against its formula in float64."""

from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import product

import numpy as np
import pytest
from onnx import TensorProto, helper

from graphopt import DynamicLossScale, Parameter, RMSProp
from graphopt.update import core, functions
from graphopt.update.core import Variant
from tests.helpers.functions import EXACT_ROOTS, assert_close, session_of

MATRIX = (4, 33)
SHAPES = {"0-d": (), "1-d": (7,), "size 1": (1, 1), "2-d": MATRIX}
DECAY, EPSILON, MOMENTUM, LOSS_SCALE = 0.8, 1e-2, 0.7, 4.0
CLIP_VALUE = 0.3
ATTRIBUTES = {
    "decay": DECAY,
    "epsilon": EPSILON,
    "momentum": MOMENTUM,
    "loss_scale": LOSS_SCALE,
    "clip_value": CLIP_VALUE,
}
TENSORS = ("w", "g", "s", "a", "m")
SCALARS = {
    "lr": TensorProto.FLOAT,
    "f": TensorProto.FLOAT,
    "k": TensorProto.FLOAT,
    "on": TensorProto.BOOL,
}
MOMENTA = [("", False), *product(("Momentum", "Nesterov"), (False, True))]

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(centered, momentum, epsilon_outside, rate_outside, weight_decay, unscale, mask)
        for centered, (momentum, rate_outside), epsilon_outside, weight_decay, unscale, mask in (
            product(
                (False, True),
                MOMENTA,
                (False, True),
                ("", "WeightDecay", "DecoupledWeightDecay"),
                (False, True),
                (False, True),
            )
        )
    )
}
VARIANTS |= {
    variant.name: variant
    for base in VARIANTS.values()
    if not (base.unscale or base.epsilon_outside or base.rate_outside)
    for scale, clip_value in ((True, False), (False, True), (True, True))
    for variant in (replace(base, scale=scale, clip_value=clip_value),)
}
CHUNKED = {
    variant.name: variant
    for variant in (replace(variant, chunked=True) for variant in VARIANTS.values())
}
EVERY = VARIANTS | CHUNKED


class Together:
    """A model that calls several variants with the same operands, of any shape where it is None."""

    def __init__(self, variants, shape, attributes, opset=17):
        kinds = dict.fromkeys(TENSORS, (TensorProto.FLOAT, shape))
        kinds |= {name: (kind, ()) for name, kind in SCALARS.items()}
        read = {name for variant in variants for name in variant.inputs}
        results = [(v.name, f"{v.name}.{output}") for v in variants for output in v.outputs]
        nodes = [
            helper.make_node(
                variant.name,
                variant.inputs,
                [f"{variant.name}.{output}" for output in variant.outputs],
                domain="graphopt",
                **{name: attributes[name] for name in variant.attributes},
            )
            for variant in variants
        ]
        self.inputs = [name for name in kinds if name in read]
        self.results = results
        self.session = session_of(
            nodes,
            [helper.make_tensor_value_info(name, *kinds[name]) for name in self.inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for _, name in results],
            core.functions_of(variants, [], opset),
            opset,
            shape is not None,
        )

    def __call__(self, operands):
        """What each variant returns, by its name and the name of the output."""
        values = self.session.run(None, {name: operands[name] for name in self.inputs})
        by_variant = {}
        for (variant, result), value in zip(self.results, values, strict=True):
            by_variant.setdefault(variant, {})[result.removeprefix(f"{variant}.")] = value
        return by_variant


def float32(values):
    return {
        name: value if name == "on" else np.asarray(value, np.float32)
        for name, value in values.items()
    }


@cache
def drawn(shape, seed, on=True):
    """Operands with which each radicand is far from zero, and where centered ones are negative.

    The gradient is at most 0.6 after weight decay. Where the mean gradient is 0.9 and the mean
    square 0, the variance is negative; where they are at most 0.5 and at least 1, it is positive.
    """
    rng = np.random.default_rng(seed)
    negative = np.asarray(rng.random(shape) < 0.3)
    sign = rng.choice([-1, 1], shape)
    operands = {
        "w": rng.uniform(-1, 1, shape),
        "g": rng.uniform(-0.5, 0.5, shape),
        "s": np.where(negative, 0, rng.uniform(1, 2, shape)),
        "a": sign * np.where(negative, 0.9, rng.uniform(0, 0.5, shape)),
        "m": rng.uniform(-1, 1, shape),
        "lr": 0.3,
        "f": 0.9,
        "k": 0.1,
        "on": np.array(on),
    }
    return float32(operands), negative


def average(old, value, decay):
    return decay * old + (1 - decay) * value


def formula(variant, operands, decay, epsilon, momentum, loss_scale, clip_value=np.inf):
    """The formula of a variant in float64, and where it leaves weight and moment alone."""
    w, g, s, a, m, lr, k = (np.asarray(operands[n], np.float64) for n in (*TENSORS, "lr", "k"))
    if variant.mask and not operands["on"]:
        return {"w1": w, "s1": s, "a1": a, "m1": m}, np.ones(w.shape, bool)
    if variant.scale:
        g = g * np.float64(operands["f"])
    if variant.clip_value:
        g = np.clip(g, -clip_value, clip_value)
    if variant.weight_decay == "WeightDecay":
        g = g + k * w
    if variant.weight_decay == "DecoupledWeightDecay":
        w = w - lr * k * w
    if variant.unscale:
        g = g / loss_scale
    s = average(s, g * g, decay)
    a = average(a, g, decay)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = s - a * a if variant.centered else s
        d = np.sqrt(variance) + epsilon if variant.epsilon_outside else np.sqrt(variance + epsilon)
        u = g / d if variant.rate_outside else lr * g / d
        m1 = momentum * m + u if variant.momentum else u
        step = momentum * m1 + u if variant.momentum == "Nesterov" else m1
        step = lr * step if variant.rate_outside else step
    radicand = variance if variant.epsilon_outside else variance + epsilon
    resting = ~(radicand > 0) if variant.centered else np.zeros(w.shape, bool)
    w1, m1 = np.where(resting, w, w - step), np.where(resting, m, m1)
    return {"w1": w1, "s1": s, "a1": a, "m1": m1}, resting


def assert_bits(got, expected, message=""):
    assert got.tobytes() == expected.tobytes(), message


@cache
def together(shape, chunked=False):
    return Together(list((CHUNKED if chunked else VARIANTS).values()), shape, ATTRIBUTES)


@cache
def computed(shape, seed, on, chunked=False):
    """Of the matrix by a model of that shape, of the others by one that takes any."""
    model = together(shape if shape == MATRIX else None, chunked)
    return model(drawn(shape, seed, on)[0])


def assert_formula(variant, shape, seed, on):
    operands, negative = drawn(shape, seed, on)
    results = computed(shape, seed, on, variant.chunked)[variant.name]
    expected, resting = formula(variant, operands, **ATTRIBUTES)
    what = f"{variant.name}, seed {seed}, on {on}"
    assert tuple(results) == variant.outputs, what
    for name, got in results.items():
        assert got.shape == shape, what
        assert_close(got, expected[name], 2e-6, 1e-6, f"{name} of {what}")
    if variant.mask and not on:
        for name, got in results.items():
            assert_bits(got, operands[name.removesuffix("1")], f"{name} of {what}")
    elif variant.centered:
        # the operands are what they shall be
        np.testing.assert_array_equal(resting, negative, what)
        if variant.momentum:
            np.testing.assert_array_equal(results["m1"][resting], operands["m"][resting], what)
        if variant.weight_decay != "DecoupledWeightDecay":
            np.testing.assert_array_equal(results["w1"][resting], operands["w"][resting], what)


def test_number_of_variants():
    """Those that unscale or do not; and of the usual ones, those that limit gradients first."""
    assert len(VARIANTS) == len(CHUNKED) == 2 * 5 * 2 * 3 * 2 * 2 + 2 * 3 * 3 * 2 * 3
    assert len(EVERY) == 2 * len(VARIANTS)


# Tests of one session each: building one for all variants takes longer than what it is tested for.


@pytest.mark.any_runtime
@pytest.mark.parametrize("kind", [kind for kind, shape in SHAPES.items() if shape != MATRIX])
def test_formula(kind):
    for variant, seed, on in product(VARIANTS.values(), range(3), (True, False)):
        if on or variant.mask:  # without a mask, nothing reads it
            assert_formula(variant, SHAPES[kind], seed, on)


@pytest.mark.exhaustive
def test_matrices():
    """By the formula; row by row the same; and kept bit for bit where the mask says so."""
    for variant, seed, on in product(VARIANTS.values(), range(3), (True, False)):
        assert_formula(variant, MATRIX, seed, on)
    for variant, on in product(CHUNKED.values(), (True, False)):
        assert_formula(variant, MATRIX, 2, on)
    for name in VARIANTS:
        assert_same_row_by_row(name)
    for name, variant in EVERY.items():
        if variant.mask:
            assert_mask_keeps_every_bit(name)


def test_both_kinds_of_radicands_are_drawn():
    for shape in SHAPES.values():
        kinds = [drawn(shape, seed)[1] for seed in range(3)]
        assert any(kind.any() for kind in kinds)
        assert not all(kind.all() for kind in kinds)


def assert_same_row_by_row(name):
    """Bit for bit, if the roots are."""
    for on in (True, False):
        whole = computed(MATRIX, 2, on)[name]
        rows = computed(MATRIX, 2, on, chunked=True)[f"Chunked{name}"]
        assert list(whole) == list(rows)
        for output, value in whole.items():
            what = f"{output} of {name}"
            if EXACT_ROOTS:
                assert_bits(rows[output], value, what)
            else:
                assert_close(rows[output], value, 1e-6, 1e-6, what)


# What the guard is for. With decay 0.5 and epsilon 0.25, a gradient of 0 and a mean gradient of 1
# make the radicand s / 2 - 1 / 4 + 1 / 4; with epsilon outside the root, a variance of -1 / 4.
GUARDED = {
    "denominator 0": {"g": 0, "s": 0, "a": 1},
    "negative radicand": {"g": 0, "s": 0, "a": 2},
    "gradient NaN": {"g": np.nan},
    "gradient Inf": {"g": np.inf},
    "gradient -Inf": {"g": -np.inf},
    "gradient overflows": {"g": 1e38},
    "mean square NaN": {"s": np.nan},
    "mean square -Inf": {"s": -np.inf},
    "mean gradient NaN": {"a": np.nan},
    "mean gradient Inf": {"a": np.inf},
    "both Inf": {"s": np.inf, "a": -np.inf},
}
MOVING = {
    "usual": {},
    "mean square Inf": {"s": np.inf},
    "gradient 0": {"g": 0},
    "large": {"s": 2**40},
}
EDGES = {"decay": 0.5, "epsilon": 0.25, "momentum": 0.5, "loss_scale": 2.0}
CENTERED = {
    name: variant
    for name, variant in EVERY.items()
    if variant.centered and not (variant.scale or variant.clip_value)
}


# Each with a usual moment, and what is guarded with others too.
CASES = {(case, 0.25): others for case, others in (GUARDED | MOVING).items()} | {
    (case, moment): others
    for case, others in GUARDED.items()
    for moment in (np.inf, -np.inf, np.nan)
}


def at_the_edge():
    """An element for each case; all numbers are powers of two, so that results are exact."""
    usual = {"w": 1, "g": 0.5, "s": 4, "a": 0.5}
    cases = [usual | others | {"m": moment} for (_, moment), others in CASES.items()]
    tensors = {name: [case[name] for case in cases] for name in TENSORS}
    return float32(tensors | {"lr": 0.5, "k": 0.0, "on": np.array(True)})


@cache
def edges(chunked):
    """What all centered variants make of these cases."""
    operands = at_the_edge()
    shape = (2, len(CASES) // 2) if chunked else (len(CASES),)
    operands |= {name: operands[name].reshape(shape) for name in TENSORS}
    variants = [variant for variant in CENTERED.values() if variant.chunked == chunked]
    results = Together(variants, shape, EDGES)(operands)
    return {
        name: {output: value.ravel() for output, value in outputs.items()}
        for name, outputs in results.items()
    }


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
def test_guard(chunked):
    """A denominator that is zero or NaN keeps weight and moment; the states go on."""
    for name, variant in CENTERED.items():
        if variant.chunked == chunked:
            assert_guarded(name)


def assert_guarded(name):
    variant = CENTERED[name]
    got = edges(variant.chunked)[name]
    expected, resting = formula(variant, at_the_edge(), **EDGES)
    usual = [(index, case) for index, (case, moment) in enumerate(CASES) if moment == 0.25]
    guarded = [index for index, case in usual if case in GUARDED]
    moving = [
        index
        for index, case in usual
        # Otherwise the root of the first may be NaN.
        if case not in GUARDED and (case != "mean square Inf" or EXACT_ROOTS)
    ]
    # In float32 it does, not in the formula.
    finite = [index for index, case in usual if case != "gradient overflows"]
    assert guarded
    assert moving
    np.testing.assert_array_equal(got["w1"][guarded], 1, name)
    assert not resting[moving].any(), name
    np.testing.assert_allclose(got["w1"][moving], expected["w1"][moving], 1e-6, err_msg=name)
    if variant.momentum:
        np.testing.assert_array_equal(got["m1"][guarded], 0.25, name)
        np.testing.assert_allclose(got["m1"][moving], expected["m1"][moving], 1e-6, err_msg=name)
    for state in ("s1", "a1"):
        wanted = expected[state][finite]
        np.testing.assert_allclose(got[state][finite], wanted, 1e-6, err_msg=f"{state} of {name}")


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_variance_of_zero(chunked, scale):
    """It keeps weight and moment, unless an epsilon under the root makes it positive."""
    variants = [v for v in CENTERED.values() if v.chunked == chunked and v.unscale == (scale == 2)]
    usual = {"w": 1, "g": 3 * scale, "s": 9, "a": 3, "m": 0.25}
    operands = float32(
        {name: np.full((1, 2), value) for name, value in usual.items()}
        | {"lr": 0.5, "k": 0.0, "on": np.array(True)}
    )
    for name, got in Together(variants, (1, 2), EDGES)(operands).items():
        rests = CENTERED[name].epsilon_outside
        expected, resting = formula(CENTERED[name], operands, **EDGES)
        assert resting.all() == rests, name
        for output, value in got.items():
            np.testing.assert_allclose(value, expected[output], rtol=1e-6, err_msg=name)


def assert_mask_keeps_every_bit(name):
    """Signs of zeros, numbers that are not finite, and the smallest numbers."""
    variant = EVERY[name]
    operands = odd_operands()
    for output, got in masked(variant.chunked)[name].items():
        assert_bits(got, operands[output.removesuffix("1")], f"{output} of {name}")


def odd_operands():
    odd = np.array([-0.0, 0.0, 0, np.nan, np.inf, -np.inf, 1e-45, -1e-38, 3e38], np.float32)
    odd[2:3].view(np.uint32)[:] = 0x7FC12345  # a NaN that says something
    tensors = {name: np.resize(np.roll(odd, index), MATRIX) for index, name in enumerate(TENSORS)}
    return float32(tensors | {"lr": 0.3, "f": 0.9, "k": 0.1, "on": np.array(False)})


@cache
def masked(chunked):
    return together(MATRIX, chunked)(odd_operands())


# What a variant says of itself.


@pytest.mark.any_runtime
def test_name_says_what_it_is():
    for name in EVERY:
        variant = EVERY[name]
        assert name.startswith("Chunked") == variant.chunked
        rest = name.removeprefix("Chunked")
        assert rest.startswith("CenteredRMSProp" if variant.centered else "RMSProp")
        words = rest.removeprefix("Centered").removeprefix("RMSProp")
        for word, is_meant in {
            "Nesterov": variant.momentum == "Nesterov",
            "Momentum": variant.momentum == "Momentum",
            "EpsilonOutside": variant.epsilon_outside,
            "RateOutside": variant.rate_outside,
            "ClipValue": variant.clip_value,
            "DecoupledWeightDecay": variant.weight_decay == "DecoupledWeightDecay",
            "WeightDecay": variant.weight_decay == "WeightDecay",
            "Unscale": variant.unscale,
            "Scale": variant.scale,
            "Mask": variant.mask,
        }.items():
            assert (word in words) == is_meant, word
            words = words.replace(word, "")
        assert not words


@cache
def function_of(name):
    return EVERY[name].function(17)


@pytest.mark.any_runtime
def test_interface():
    """The function has the inputs, outputs and attributes that the variant tells."""
    for name in EVERY:
        variant, function = EVERY[name], function_of(name)
        assert (function.domain, function.name) == ("graphopt", name)
        assert tuple(function.input) == variant.inputs
        assert tuple(function.output) == variant.outputs
        assert tuple(function.attribute) == variant.attributes
        states = ["s", *(["a"] if variant.centered else []), *(["m"] if variant.momentum else [])]
        scalars = [
            "lr",
            *(["f"] if variant.scale else []),
            *(["k"] if variant.weight_decay else []),
            *(["on"] if variant.mask else []),
        ]
        assert variant.inputs == ("w", "g", *states, *scalars)
        assert variant.outputs == ("w1", *(f"{state}1" for state in states))
        wanted = {"decay", "epsilon"} | ({"momentum"} if variant.momentum else set())
        wanted |= {"loss_scale"} if variant.unscale else set()
        wanted |= {"clip_value"} if variant.clip_value else set()
        assert set(variant.attributes) == wanted


def optimizer(**settings):
    group = {"params": [Parameter("w", (3, 2), op_type="Conv")]}
    group["grad_centralization"] = settings.pop("grad_centralization", False)
    return RMSProp([group], **settings)


NAMES = {
    "RMSProp": {},
    "CenteredRMSProp": {"centered": True},
    "RMSPropMomentum": {"momentum": 0.9},
    "RMSPropNesterov": {"momentum": 0.9, "nesterov": True},
    "RMSPropEpsilonOutside": {"epsilon_inside_root": False},
    "RMSPropMomentumRateOutside": {"momentum": 0.9, "learning_rate_inside_moment": False},
    "RMSPropWeightDecay": {"weight_decay": 0.1},
    "RMSPropDecoupledWeightDecay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "RMSPropUnscale": {"loss_scale": 8.0},
    "RMSPropScale": {"loss_scale": DynamicLossScale()},
    "RMSPropMomentumScale": {"momentum": 0.9, "loss_scale": 8.0, "clip_norm": 1.0},
    "RMSPropClipValue": {"clip_value": 1.0},
    "RMSPropScaleClipValueWeightDecay": {
        "loss_scale": 8.0,
        "clip_value": 1.0,
        "weight_decay": 0.1,
    },
    "CenteredRMSPropNesterovEpsilonOutsideRateOutsideDecoupledWeightDecayUnscale": {
        "centered": True,
        "momentum": 0.9,
        "nesterov": True,
        "epsilon_inside_root": False,
        "learning_rate_inside_moment": False,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "loss_scale": 8.0,
    },
}
# What has no effect, or comes before the function.
SAME_NAME = {
    "no moment to be inside of": ("RMSProp", {"learning_rate_inside_moment": False}),
    "nothing to decouple": ("RMSProp", {"decoupled_weight_decay": True}),
    "decay before centralization": ("RMSProp", {"weight_decay": 0.1, "grad_centralization": True}),
    "decoupled decay beside centralization": (
        "RMSPropDecoupledWeightDecay",
        {"weight_decay": 0.1, "grad_centralization": True, "decoupled_weight_decay": True},
    ),
}


@pytest.mark.any_runtime
@pytest.mark.parametrize(
    ("expected", "settings"), [*NAMES.items(), *SAME_NAME.values()], ids=[*NAMES, *SAME_NAME]
)
def test_variant_of_an_optimizer(expected, settings):
    opt = optimizer(**settings)
    (rule,) = opt.rules
    assert core.variant(opt, rule).name == expected
    assert core.variant(opt, rule, mask=True).name == f"{expected}Mask"
    assert core.variant(opt, rule, chunked=True).name == f"Chunked{expected}"


# The stages.


def run(name, operands, opset=17, **attributes):
    """What a model of one call of a stage returns."""
    loaded = functions.with_stages([], [name], opset)
    function = next(function for function in loaded if function.name == name)
    flag = name.startswith("AllFinite")
    shape = () if flag else max((array.shape for array in operands), key=len)
    kind = TensorProto.BOOL if flag else TensorProto.FLOAT
    session = session_of(
        [
            helper.make_node(
                name, list(function.input), list(function.output), domain="graphopt", **attributes
            )
        ],
        [
            helper.make_tensor_value_info(
                formal, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for formal, array in zip(function.input, operands, strict=True)
        ],
        [helper.make_tensor_value_info(o, kind, shape) for o in function.output],
        loaded,
        opset,
    )
    (result,) = session.run(None, dict(zip(function.input, operands, strict=True)))
    return result


def guarded_moment(moves, m, u):
    return np.where(moves == 1, MOMENTUM * m + u, m)


STAGES = {
    "MovingAverage": (lambda v, g: average(v, g, DECAY), "m g", {"decay": DECAY}),
    "Moment": (lambda m, u: MOMENTUM * m + u, "m g", {"momentum": MOMENTUM}),
    "GuardedMoment": (guarded_moment, "moves m u", {"momentum": MOMENTUM}),
    "WeightedSum": (lambda x, y, a, b: a * x + b * y, "w g lr f", {}),
    "Scale": (lambda g, factor: g * factor, "g lr", {}),
    "ClipValue": (lambda g: np.clip(g, -0.5, 0.5), "g", {"clip_value": 0.5}),
    "Unscale": (lambda g: g / 1024, "g", {"loss_scale": 1024.0}),
    "WeightDecay": (lambda w, g, k: g + k * w, "w g lr", {}),
    "DecoupledWeightDecay": (lambda w, lr, k: w - lr * k * w, "w lr lr", {}),
    "Denominator": (lambda v: np.sqrt(v + EPSILON), "variance", {"epsilon": EPSILON}),
    "DenominatorEpsilonOutside": (
        lambda v: np.sqrt(v) + EPSILON,
        "variance",
        {"epsilon": EPSILON},
    ),
    "Positive": (lambda d: np.where(d > 0, 1, 0), "m", {}),
    "PositiveOrNaN": (lambda v: v / v, "variance", {}),
    "Guard": (lambda moves, u: np.where(moves == 1, u, 0), "moves g", {}),
}
NEEDED = {
    Variant(): ["Denominator", "MovingAverage"],
    Variant(momentum="Momentum"): ["Denominator", "Moment", "MovingAverage"],
    Variant(centered=True): ["Denominator", "Guard", "MovingAverage", "PositiveOrNaN"],
    Variant(centered=True, momentum="Momentum"): [
        "Denominator",
        "Guard",
        "GuardedMoment",
        "MovingAverage",
        "Positive",
    ],
    Variant(True, "Nesterov", True, True, "DecoupledWeightDecay", True, True): [
        "DecoupledWeightDecay",
        "DenominatorEpsilonOutside",
        "Guard",
        "GuardedMoment",
        "Mask",
        "Moment",
        "MovingAverage",
        "Positive",
        "Unscale",
    ],
    Variant(weight_decay="WeightDecay", chunked=True): [],
}


def operand(kind, shape, rng):
    if kind == "f":
        return np.array(np.float32(0.9))
    if kind == "lr":
        return np.array(np.float32(0.3))
    if kind == "variance":
        return np.asarray(rng.uniform(0, 0.5, shape)).astype(np.float32)
    if kind == "moves":
        return np.asarray(rng.integers(0, 2, shape)).astype(np.float32)
    return np.asarray(rng.standard_normal(shape)).astype(np.float32)


@pytest.mark.quick
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("name", STAGES)
def test_stage(name, shape):
    expected, kinds, attributes = STAGES[name]
    rng = np.random.default_rng(1)
    operands = {kind: operand(kind, shape, rng) for kind in kinds.split()}
    if "u" in operands:  # a guarded step is 0 where nothing moves
        operands["u"] = np.asarray(operands["u"] * operands["moves"])
    given = [operands[kind] for kind in kinds.split()]
    got = run(name, given, **attributes)
    assert got.shape == shape
    wanted = expected(*(array.astype(np.float64) for array in given))
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 6), (1, 1), (3, 1)], ids=str)
def test_centralize(shape):
    g = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = g - g.astype(np.float64).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(run("Centralize", [g]), expected, atol=1e-6)


@pytest.mark.parametrize("enabled", [True, False])
def test_mask(enabled):
    old, new = np.ones(3, np.float32), np.full(3, 2, np.float32)
    got = run("Mask", [np.array(enabled), old, new])
    np.testing.assert_array_equal(got, new if enabled else old)


@pytest.mark.parametrize("on", [True, False])
def test_weighted_sum_with_a_mask(on):
    x, y = np.array([1, -0.0, np.nan], np.float32), np.full(3, 2, np.float32)
    a, b = np.array(0.25, np.float32), np.array(0.5, np.float32)
    got = run("WeightedSumMask", [x, y, a, b, np.array(on)])
    assert_bits(got, x * a + y * b if on else x, "masked sum")


def test_weighted_sum_begins_anew():
    x, y = np.array([1, np.inf, np.nan], np.float32), np.full(3, 2, np.float32)
    zero, b = np.array(0, np.float32), np.array(0.5, np.float32)
    np.testing.assert_array_equal(run("WeightedSum", [x, y, zero, b]), [1, 1, 1])


@pytest.mark.parametrize("bad", [None, np.inf, -np.inf, np.nan], ids=str)
@pytest.mark.parametrize("shapes", [[()], [(3, 4), (0,), (5,)]], ids=str)
def test_all_finite(bad, shapes):
    """Also where their sum and their squares are not."""
    arrays = [np.full(shape, 3e38, np.float32) for shape in shapes]
    if bad is not None:
        arrays[-1].reshape(-1)[-1] = bad
    assert run(f"AllFinite{len(arrays)}", arrays) == (bad is None)


def test_positive_at_the_edge():
    d = np.array([0, -0.0, np.nan, -np.inf, np.inf, 1e-38, -1e-38], np.float32)
    np.testing.assert_array_equal(run("Positive", [d]), [0, 0, 0, 0, 1, 1, 0])
    nan = np.nan
    np.testing.assert_array_equal(run("PositiveOrNaN", [d[:-1]]), [nan, nan, nan, nan, nan, 1])


def test_guard_at_the_edge():
    """What is not finite passes where it moves, and is 0 where it does not."""
    moves = np.array([1, 1, 1, 1, 0, 0, 0, 0, np.nan, np.nan], np.float32)
    u = np.array([3, -3, np.inf, -np.inf, 3, np.nan, np.inf, -np.inf, 0, np.inf], np.float32)
    expected = [3, -3, np.inf, -np.inf, 0, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(run("Guard", [moves, u]), expected)


# What is loaded.


@pytest.mark.any_runtime
@pytest.mark.parametrize("variant", NEEDED, ids=lambda variant: variant.name)
def test_loading_pulls_in_what_is_called(variant):
    loaded = core.functions_of([variant], [], 17)
    assert [function.name for function in loaded] == sorted([variant.name, *NEEDED[variant]])
    assert {function.domain for function in loaded} == {"graphopt"}


@pytest.mark.any_runtime
def test_loading_several_has_each_once():
    names = [f.name for f in core.functions_of([*NEEDED, *NEEDED], ["Centralize", "Moment"], 17)]
    needed = {name for called in NEEDED.values() for name in called}
    assert names == sorted({*(variant.name for variant in NEEDED), *needed, "Centralize"})


@pytest.mark.any_runtime
def test_a_row_calls_no_function():
    """ONNX Runtime does not find functions that are called in a subgraph of a function."""
    for name in CHUNKED:
        (scan,) = function_of(name).node
        assert scan.op_type == "Scan"
        (body,) = (attribute.g for attribute in scan.attribute if attribute.name == "body")
        assert {node.domain for node in body.node} == {""}


@pytest.mark.any_runtime
def test_every_stage_is_tested():
    names = [path.name for path in files(functions).iterdir()]
    stages = {name.removesuffix(".onnxtxt") for name in names if "onnxtxt" in name}
    drawing = {name for name in stages if name.startswith("Random")}  # test_random_numbers.py
    stages -= {name for name in stages if name.endswith("Float64")}  # tests/half/test_float64.py
    stages -= {name for name in stages if name.startswith("Depthwise")}  # test_depthwise.py
    assert stages - drawing == {*STAGES, "Centralize", "Mask", "WeightedSumMask"}


@pytest.mark.any_runtime
def test_every_stage_is_used():
    """By a variant, but for the one that comes before them."""
    used = {function.name for function in core.functions_of(VARIANTS.values(), [], 17)} - set(
        VARIANTS
    )
    assert used == {*STAGES, "Mask"} - {"WeightedSum"}


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize("opset", [17, 18, 21])
def test_opset(opset, chunked):
    variant = Variant(centered=True, momentum="Momentum", unscale=True, mask=True, chunked=chunked)
    for function in core.functions_of([variant], ["Centralize"], opset):
        imported = {entry.domain: entry.version for entry in function.opset_import}
        assert imported == {"": opset, "graphopt": 1}
    operands, _ = drawn((2, 5), 0)
    results = Together([variant], (2, 5), ATTRIBUTES, opset)(operands)[variant.name]
    expected, _ = formula(variant, operands, **ATTRIBUTES)
    for name, got in results.items():
        np.testing.assert_allclose(got, expected[name], rtol=2e-6, atol=1e-6, err_msg=name)


def test_unknown_function():
    with pytest.raises(FileNotFoundError):
        functions.stage("Nonexistent")
