"""Gradients of sums and products of all elements before one."""

import numpy as np

from tests.helpers.gradient_oracle import Case, cases, check, normal

CUMSUM = {
    f"CumSum axis={axis} exclusive={exclusive} reverse={reverse}": Case(
        f"y = CumSum<exclusive={exclusive}, reverse={reverse}>(x, a)",
        {"x": normal(2, 4, 3), "a": np.array(axis)},
        lambda x, a, e=exclusive, r=reverse: cum_sum(x, int(a), e, r),
    )
    for axis in (1, -1)
    for exclusive in (0, 1)
    for reverse in (0, 1)
} | {
    "CumSum of a vector": Case(
        "y = CumSum(x, a)", {"x": normal(5), "a": np.array([0])}, lambda x, *_: x.cumsum(0)
    ),
    "CumSum of an empty batch": Case(
        "y = CumSum(x, a)", {"x": normal(0, 3), "a": np.array(1)}, lambda x, *_: x.cumsum(1)
    ),
    "CumSum along an axis of the running graph": Case(
        "b = Add(a, nought) y = CumSum(x, b)",
        {"x": normal(2, 3), "a": np.array(1)},
        lambda x, *_: x.cumsum(1),
    ),
}


def cum_sum(x, axis, exclusive, reverse):
    x = x.flip(axis) if reverse else x
    y = x.cumsum(axis)
    y = y - x if exclusive else y
    return y.flip(axis) if reverse else y


@cases(CUMSUM)
def test_sums(case, dynamic):
    check(case, dynamic)
