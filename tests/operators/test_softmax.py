"""Gradients of softmax and its logarithm."""

import pytest
import torch

from tests.helpers.gradient_oracle import Case, cases, check, normal

FUNCTIONS = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax}
CASES = (
    {
        f"{name} {shape} axis={axis}": Case(
            f"y = {name}<axis={axis}>(x)", {"x": normal(*shape)}, lambda x, f=f, a=axis: f(x, a)
        )
        for name, f in FUNCTIONS.items()
        for shape, axis in (((3, 4), 1), ((3, 4), 0), ((2, 3, 4), -2), ((5,), 0), ((3, 1), 1))
    }
    | {
        f"{name} default axis": Case(
            f"y = {name}(x)", {"x": normal(2, 3, 4)}, lambda x, f=f: f(x, -1), opset=opset
        )
        for opset, (name, f) in zip((17, 21), FUNCTIONS.items(), strict=True)
    }
    | {
        f"{name} of an empty batch": Case(
            f"y = {name}(x)", {"x": normal(0, 4)}, lambda x, f=f: f(x, -1)
        )
        for name, f in FUNCTIONS.items()
    }
    | {
        "LogSoftmax of large numbers": Case(
            "y = LogSoftmax(x)", {"x": 80 * normal(3, 4)}, lambda x: torch.log_softmax(x, -1)
        )
    }
)


@pytest.mark.quick
@cases(CASES)
def test_gradients(case, dynamic):
    check(case, dynamic)


def test_cases_are_complete():
    assert len(CASES) == 15
    with pytest.raises(AssertionError):
        check(Case("y = Softmax(x)", {"x": normal(3, 4)}, lambda x: 1.01 * torch.softmax(x, -1)), 0)
