"""Gradients of batch normalization, by the statistics of the batch and by given ones."""

import numpy as np
import pytest
from torch.nn import functional

from tests.helpers.gradient_oracle import Case, cases, check, normal

SHAPES = ((4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 3), (6, 1, 2), (1, 3, 4))


def parameters(channels):
    return {
        "s": normal(channels, seed=1) + 1,
        "b": normal(channels, seed=2),
        "m": normal(channels, seed=3),
        "v": np.abs(normal(channels, seed=4)) + 0.5,
    }


def by_batch(x, s, b, _m, _v):
    return functional.batch_norm(x, None, None, s, b, training=True, eps=1e-3)


def by_given(x, s, b, m, v):
    shape = [1, -1] + [1] * (x.ndim - 2)
    m, v, s, b = (value.reshape(shape) for value in (m, v, s, b))
    return (x - m) / (v + 1e-3).sqrt() * s + b


TRAINED = {
    f"batch {shape} opset {opset}": Case(
        "y = BatchNormalization<epsilon=0.001, training_mode=1>(x, s, b, m, v)"
        if opset == 17
        # Its scale is trained, so the mode is that of training all the same.
        else "y = BatchNormalization<epsilon=0.001>(x, s, b, m, v)",
        {"x": 3 * normal(*shape) + 1, **parameters(shape[1])},
        by_batch,
        constants=("m", "v"),
        dynamic="none" if opset == 21 else "all",
        tolerance=2e-5,
    )
    for shape in SHAPES
    for opset in (17, 21)
}
FROZEN = {
    f"given {shape}": Case(
        "one = Constant<value = float {1.0}>() m2 = Mul(m, one) v2 = Mul(v, one) "
        "y = BatchNormalization<epsilon=0.001>(x, s, b, m2, v2)",
        {"x": normal(*shape), **parameters(shape[1])},
        by_given,
        constants=("s", "b"),
        dynamic="batch",
    )
    for shape in SHAPES
}  # fmt: skip


@pytest.mark.quick
@cases(TRAINED)
def test_by_the_statistics_of_the_batch(case, dynamic):
    check(case, dynamic)


@cases(FROZEN)
def test_by_given_statistics_which_may_be_computed(case, dynamic):
    check(case, dynamic)
