"""Gradients of sums, products, powers and choices."""

import numpy as np
import pytest
import torch

from tests.helpers.gradient_oracle import (
    Case,
    cases,
    check,
    check_types,
    distinct,
    normal,
    onnx_gradients,
    torch_gradients,
)

BINARY = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
    "Mean": lambda a, b: (a + b) / 2,
}
SHAPES = (
    ((2, 3, 4), (2, 3, 4)),
    ((2, 3, 4), (4,)),
    ((3, 1), (2, 3, 4)),
    ((2, 1, 4), (1, 3, 1)),
    ((2, 3), ()),
    ((), ()),
    ((1,), ()),
    ((1, 1), (1,)),
    ((1,), (5,)),
)


def away_from_zero(*shape, seed=0):
    x = normal(*shape, seed=seed)
    return np.asarray(x + np.sign(x), np.float32)


def vector(*elements):
    return np.array(elements, np.float32)


def binary(op_type, a, b, **options):
    return Case(f"y = {op_type}(a, b)", {"a": a, "b": b}, BINARY[op_type], **options)


def variadic(op_type, function, *shapes):
    names = "abcde"[: len(shapes)]
    arrays = {n: normal(*s, seed=i) for i, (n, s) in enumerate(zip(names, shapes, strict=True))}
    return Case(f"y = {op_type}({', '.join(names)})", arrays, function)


def stacked(reduce):
    """An operator of many operands, in PyTorch; those that tie share evenly in amax and amin."""

    def compute(*operands):
        return reduce(torch.stack(torch.broadcast_tensors(*operands)), dim=0)

    return compute


def one_hot(axis):
    def compute(indices, depth, values):
        # An index from the end counts too, and one outside is off everywhere.
        places = torch.where(indices < 0, indices + depth, indices)
        is_on = places[..., None] == torch.arange(int(depth))
        return torch.movedim(values[is_on.long()], -1, axis)

    return compute


ELEMENTWISE = {
    **{
        f"{op_type} {a} {b}": binary(op_type, normal(*a), away_from_zero(*b, seed=1))
        for op_type in BINARY
        for a, b in SHAPES
    },
    **{
        f"{op_type} opset 21": binary(op_type, normal(2, 3), away_from_zero(3, seed=1), opset=21)
        for op_type in BINARY
    },
    "Mul by itself": Case("y = Mul(a, a)", {"a": normal(2, 3)}, lambda a: a * a),
    "Div by itself": Case(
        "s = Div(a, a) y = Add(s, a)", {"a": away_from_zero(2, 3)}, lambda a: a / a + a
    ),
    **{
        f"{op_type} with ties": binary(op_type, vector(1, 2, 3, 0.0), vector(1, 3, 2, -0.0))
        for op_type in ("Max", "Min")
    },
    **{
        f"{op_type} of {len(shapes)}": variadic(op_type, stacked(reduce), *shapes)
        for op_type, reduce in (
            ("Max", torch.amax),
            ("Min", torch.amin),
            ("Sum", torch.sum),
            ("Mean", torch.mean),
        )
        for shapes in (
            [(2, 3)],
            [(2, 3), (3,), (2, 1)],
            [(2, 3), (), (2, 1), (2, 3), (1, 1, 3)],
        )
    },
    "Max of three with ties": Case(
        "y = Max(a, b, c)",
        {"a": vector(1, 5, 2, 0), "b": vector(1, 5, 3, 1), "c": vector(1, 4, 3, 2)},
        stacked(torch.amax),
    ),
    "Max of a value twice": Case("y = Max(a, a)", {"a": normal(3)}, torch.clone),
    "Max with a constant": Case(
        "y = Max(a, b)",
        {"a": vector(-1, 0, 1), "b": vector(0)},
        torch.maximum,
        constants=["b"],
    ),
    "Sqrt of Max": Case(
        "m = Max(a, b) y = Sqrt(m)",
        {"a": vector(-1, 4, 1), "b": vector(0)},
        lambda a, b: torch.maximum(a, b).sqrt(),
        constants=["b"],
    ),
    **{
        f"Mod {a} {b}": Case(
            "y = Mod<fmod=1>(a, b)",
            {"a": normal(*a) * 5, "b": away_from_zero(*b, seed=1)},
            torch.fmod,
        )
        for a, b in (((2, 3), (2, 3)), ((2, 3), (3,)), ((4,), (2, 4)), ((2, 3), ()))
    },
    "Mod with the sign of the divisor": Case(
        "y = Mod(a, b)",
        {"a": normal(2, 3) * 5, "b": away_from_zero(3, seed=1)},
        torch.remainder,
        opset=28,
    ),
}
POW = {
    **{
        f"Pow {a} {b}": Case(
            "y = Pow(a, b)", {"a": np.abs(normal(*a)) + 0.1, "b": normal(*b, seed=1)}, torch.pow
        )
        for a, b in (((2, 3), (2, 3)), ((2, 3), (3,)), ((4,), (2, 4)), ((2, 3), (1,)), ((1,), (2,)))
    },
    **{
        f"Pow by a constant {e}": Case(
            "y = Pow(a, e)", {"a": a, "e": vector(e)[0:1]}, torch.pow, constants=["e"]
        )
        for a, exponents in (
            (away_from_zero(3, 4), (0, 1, 2, 3, 4, -1, -2, -3)),
            (np.abs(away_from_zero(3, 4)), (0.5, 1.5, 2.5, -0.5, -1.5)),
        )
        for e in exponents
    },
    **{
        f"Pow by a constant {dtype.__name__}": Case(
            "y = Pow(a, e)", {"a": away_from_zero(3, 4), "e": np.array(3, dtype)}, torch.pow
        )
        for dtype in (np.int32, np.int64, np.float64)
    },
    "Pow by a constant of more axes": Case(
        "y = Pow(a, e)", {"a": normal(3), "e": np.full((1, 1, 1), 2, np.int64)}, torch.pow
    ),
    "Pow by several ints": Case(
        "y = Pow(a, e)",
        {"a": vector(-2, -1, 0, 0, 0, 3), "e": np.array([2, 3, 0, 1, 2, -1], np.int64)},
        torch.pow,
    ),
    "Pow at 0": Case(
        "y = Pow(a, e)", {"a": vector(0, 0, 0, 0), "e": vector(0, 1, 2, 2.5)}, torch.pow
    ),
    **{
        f"Pow by a constant {e} at 0": Case(
            "y = Pow(a, e)", {"a": vector(0, 1, 4), "e": vector(e)}, torch.pow, constants=["e"]
        )
        for e in (0, 1, 1.5, 2, 3)
    },
    "Pow of a negative by whole floats": Case(
        "y = Pow(a, e)",
        {"a": vector(-2, -1, -3), "e": vector(2, 3, 0)},
        torch.pow,
        constants=["e"],
    ),
    "Pow of a constant": Case(
        "y = Pow(a, e)",
        {"a": vector(2, 0, 3), "e": vector(2, 3, -1)},
        torch.pow,
        constants=["a"],
    ),
    "Pow opset 21": Case(
        "y = Pow(a, e)", {"a": vector(2, 1), "e": vector(2, 3)}, torch.pow, opset=21
    ),
}
CONDITION = np.array([[True, False, True], [False, False, True]])
WHERE = {
    **{
        f"Where {c.shape} {a} {b}": Case(
            "y = Where(c, a, b)", {"c": c, "a": normal(*a), "b": normal(*b, seed=1)}, torch.where
        )
        for c, a, b in (
            (CONDITION, (2, 3), (2, 3)),
            (CONDITION, (3,), (2, 1)),
            (CONDITION, (), (4, 2, 3)),
            (CONDITION[0], (2, 3), (2, 1)),
            (CONDITION[:, :1], (2, 3), (1,)),
            (np.array(True), (2, 3), (3,)),
            (np.array(False), (), ()),
        )
    },
    "Sqrt of Where": Case(
        "w = Where(c, a, b) y = Sqrt(w)",
        {"c": CONDITION, "a": normal(2, 3) ** 2 + 1, "b": np.zeros((2, 3), np.float32)},
        lambda c, a, b: torch.where(c, a, b).sqrt(),
        constants=["b"],
    ),
}
CLIP = {
    "Clip": Case("y = Clip(x)", {"x": normal(2, 3)}, torch.clone),
    "Clip min": Case(
        "y = Clip(x, low)",
        {"x": distinct(3, 4), "low": np.float32([-0.5]).reshape(())},
        torch.clamp,
    ),
    "Clip max": Case(
        "y = Clip(x, , high)",
        {"x": distinct(3, 4), "high": np.array(0.5, np.float32)},
        lambda x, high: torch.clamp(x, max=high),
    ),
    **{
        f"Clip {low} to {high}": Case(
            "y = Clip(x, low, high)",
            {
                "x": distinct(3, 4),
                "low": np.array(low, np.float32),
                "high": np.array(high, np.float32),
            },
            torch.clamp,
            constants=constants,
            opset=opset,
        )
        for low, high, constants, opset in (
            (-1, 1, ["low", "high"], 17),
            (-0.5, 1.5, [], 17),
            (-1, 0.5, ["high"], 21),
            (1, -1, [], 17),
        )
    },
    "Clip at the bounds": Case(
        "y = Clip(x, low, high)",
        {
            "x": vector(-2, -1, 0, 1, 2),
            "low": np.array(-1, np.float32),
            "high": np.array(1, np.float32),
        },
        torch.clamp,
    ),
    "Sqrt of Clip": Case(
        "c = Clip(x, low) y = Sqrt(c)",
        {"x": vector(-2, -1, 1, 2), "low": np.array(0, np.float32)},
        lambda x, low: torch.clamp(x, low).sqrt(),
        constants=["low"],
    ),
}
ONE_HOT = {
    f"OneHot {axis}": Case(
        f"y = OneHot<axis={axis}>(i, depth, values)",
        {
            "i": np.array([[1, 0, 2], [-1, 2, 5]]),
            "depth": np.array([3], np.int64),
            "values": vector(0.25, 2),
        },
        one_hot(axis),
    )
    for axis in (-1, 0, 1)
}
CASES = ELEMENTWISE | POW | WHERE | CLIP | ONE_HOT


@pytest.mark.quick
@cases(CASES)
def test_gradients(case, dynamic):
    check(case, dynamic)


@pytest.mark.parametrize("op_type", BINARY)
@pytest.mark.parametrize("shape", [(0, 3), (3,), (1, 1), ()])
def test_empty_batch(op_type, shape):
    check(binary(op_type, normal(0, 3), away_from_zero(*shape, seed=1)), dynamic=True)


@pytest.mark.parametrize(
    ("base", "exponent"), [(0.0, 0.5), (0.0, -1.0), (0.0, -0.5), (0.0, -2.0), (0.0, 0.25)]
)
@pytest.mark.parametrize("constant", [True, False])
def test_infinite_power(base, exponent, constant):
    inputs = {"a": vector(base, 4), "e": vector(exponent)}
    case = Case("y = Pow(a, e)", inputs, torch.pow, constants=["e"])
    if not constant:
        case = Case("y = Pow(a, e)", inputs | {"e": vector(exponent, 2)}, torch.pow)
    names = ["a"] if constant else ["a", "e"]
    # The sum of the outputs may be infinite, and is not what counts.
    with np.errstate(all="ignore"):
        expected = torch_gradients(case, names)
        got = onnx_gradients(case, names, dynamic=False)
    assert np.isinf(expected["a"]).any()
    for name in names:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.any_runtime
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("name", [name for name in CASES if "opset" not in name])
def test_other_dtypes(name, dtype):
    check_types(CASES[name], dtype)
