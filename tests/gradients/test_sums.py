"""Gradients of parts of a value are put side by side where they are the whole."""

from collections import Counter

import numpy as np
import pytest
import torch

from graphopt.gradients import differentiate, prepare
from tests.helpers.gradient_oracle import Case, check, normal, onnx_model

END = np.array([np.iinfo(np.int64).max])


def at(*values):
    return np.array(values, np.int64)


HALVES = "a = Slice(x, nil, two, axis) b = Slice(x, two, end, axis) "
ELEMENTS = "a = Gather<axis=1>(x, nil) b = Gather<axis=1>(x, one) c = Gather<axis=1>(x, rest)"
LIMITS = {"nil": at(0), "two": at(2), "axis": at(1), "end": END}
# Each with the PyTorch of its parts, and the numbers of Concat, Pad and Add of its gradient.
CASES = {
    "halves": (
        HALVES + "n = Neg(a) y = Concat<axis=1>(b, n)",
        LIMITS,
        lambda x, *_: (x[:, 2:], -x[:, :2]),
        (1, 0, 0),
    ),
    "halves, and the whole": (
        HALVES + "n = Neg(a) h = Concat<axis=1>(b, n) y = Mul(h, x)",
        LIMITS,
        lambda x, *_: (x[:, 2:] * x[:, :2], -x[:, :2] * x[:, 2:]),
        (1, 0, 1),
    ),
    "elements": (
        f"{ELEMENTS} ab = Mul(a, b) y = Mul(c, ab)",
        {"nil": at(0), "one": at(1), "rest": at(2, 3)},
        lambda x, *_: (x[:, 2:] * x[:, :1] * x[:, 1:2],),
        (1, 0, 0),
    ),
    "a gap": (
        "a = Slice(x, nil, one, axis) b = Slice(x, two, end, axis) y = Mul(a, b)",
        LIMITS | {"one": at(1)},
        lambda x, *_: (x[:, :1] * x[:, 2:],),
        (0, 2, 1),
    ),
    "twice": (
        HALVES + "c = Slice(x, two, end, axis) ab = Mul(a, b) y = Mul(ab, c)",
        LIMITS,
        lambda x, *_: (x[:, :2] * x[:, 2:] * x[:, 2:],),
        (0, 3, 2),
    ),
    "the whole in steps": (
        "a = Slice(x, nil, end, axis, two) b = Slice(x, one, end, axis, two) y = Mul(a, b)",
        LIMITS | {"one": at(1)},
        lambda x, *_: (x[:, ::2] * x[:, 1::2],),
        (2, 1, 1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_parts(name):
    """The size of the other axis may be unknown."""
    node, constants, parts, expected = CASES[name]
    case = Case(
        node,
        {"x": normal(3, 4), **constants},
        lambda *inputs: torch.cat(parts(*inputs), 1),
        dynamic="batch",
    )
    check(case, dynamic=True)
    check(case, dynamic=False)
    model, statistics = prepare(onnx_model(case, ["x"], dynamic=False), ["x"])
    before = Counter(node.op_type for node in model.graph)
    built = differentiate(model, ["x"], model.graph.outputs[0], statistics)
    added = Counter(node.op_type for node in built.model.graph) - before
    assert tuple(added[op_type] for op_type in ("Concat", "Pad", "Add")) == expected


@pytest.mark.parametrize("axis", [0, 1])
def test_a_slice_of_all_is_no_part(axis):
    case = Case(
        "y = Slice(x, nil, end, axis)",
        {"x": normal(3, 4), "nil": at(0), "end": END, "axis": at(axis)},
        lambda x, *_: x,
    )
    check(case, dynamic=True)
    model, statistics = prepare(onnx_model(case, ["x"], dynamic=True), ["p_x"])
    built = differentiate(model, ["p_x"], model.graph.outputs[0], statistics)
    assert "Pad" not in {node.op_type for node in built.model.graph}


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_gradient_of_a_parameter_is_a_part(dynamic):
    """On a device too, where zeros are put beside it in another way."""
    case = Case(
        "y = Slice(x, nil, two, axis)",
        {"x": normal(3, 4), **LIMITS},
        lambda x, *_: x[:, :2],
        dynamic="batch",
        options={"provider": "CUDAExecutionProvider"},
    )
    check(case, dynamic)
