"""Gradients of normalizations within an example."""

import pytest
import torch
from torch.nn import functional

from tests.helpers.gradient_oracle import Case, cases, check, normal


def layer(shape, axis, scale=None, bias=True, attributes="", opset=17, eps=1e-5):
    scale = shape[axis:] if scale is None else scale
    inputs = {"x": normal(*shape), "s": normal(*scale, seed=1)}
    if bias:
        inputs["b"] = normal(*scale, seed=2)

    def compute(x, s, b=0.0):
        axes = tuple(range(axis % x.ndim, x.ndim))
        variance = x.var(axes, keepdim=True, correction=0)
        return (x - x.mean(axes, keepdim=True)) / (variance + eps).sqrt() * s + b

    text = ", ".join(filter(None, [f"axis={axis}" if axis != -1 else "", attributes]))
    return Case(
        f"y = LayerNormalization<{text}>({', '.join(inputs)})".replace("<>", ""),
        inputs,
        compute,
        opset=opset,
        known=["s", "b"],
        tolerance=1e-5,
    )


LAYER = {
    "last axis": layer([2, 3, 5], -1),
    "two axes": layer([2, 3, 5], 1),
    "all axes": layer([2, 3, 5], 0),
    "negative axis": layer([2, 3, 5], -2),
    "without bias": layer([2, 3, 5], -1, bias=False),
    "epsilon": layer([2, 3, 5], -1, attributes="epsilon=0.5", eps=0.5),
    "one dimension": layer([5], -1),
    "four dimensions": layer([2, 3, 4, 5], 2),
    "opset 18": layer([2, 3, 5], 1, opset=18),
    "opset 21": layer([2, 3, 5], 1, opset=21),
}


def instance(x, s, b):
    return functional.instance_norm(x, weight=s, bias=b)


def channels(*shape, seed=0):
    count = shape[1]
    return {"x": normal(*shape, seed=seed), "s": normal(count, seed=1), "b": normal(count, seed=2)}


INSTANCE = {
    f"{len(shape)} dimensions, opset {opset}": Case(
        "y = InstanceNormalization(x, s, b)",
        channels(*shape),
        instance,
        opset=opset,
        tolerance=1e-5,
    )
    for shape in ([2, 3, 7], [2, 3, 4, 5], [2, 3, 2, 3, 4])
    for opset in (17, 18)
} | {
    "epsilon": Case(
        "y = InstanceNormalization<epsilon=0.5>(x, s, b)",
        channels(2, 3, 4, 5),
        lambda x, s, b: functional.instance_norm(x, weight=s, bias=b, eps=0.5),
        known=["s", "b"],
        tolerance=1e-5,
    ),
}


def lrn(size, alpha=1e-4, beta=0.75, bias=1.0):
    def compute(x):
        padding = [0] * (2 * (x.ndim - 2)) + [(size - 1) // 2, size // 2]
        squares = functional.pad(x * x, padding)
        total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
        return x / (bias + alpha / size * total) ** beta

    return compute


LRN = {
    f"size {size}, {len(shape)} dimensions": Case(
        f"y = LRN<size={size}, alpha=0.9, beta=0.6, bias=1.5>(x)",
        {"x": 3 * normal(*shape)},
        lrn(size, 0.9, 0.6, 1.5),
    )
    for size, shape in (
        (1, [2, 6, 3, 4]),
        (3, [2, 6, 3, 4]),
        (5, [2, 6, 3, 4]),
        (11, [2, 6, 3, 4]),
        (3, [1, 1, 1, 1]),
    )
} | {
    "defaults": Case("y = LRN<size=3>(x)", {"x": 30 * normal(2, 6, 3, 4)}, lrn(3)),
    "only the batch is unknown": Case(
        "y = LRN<size=3>(x)", {"x": 30 * normal(2, 6, 3, 4)}, lrn(3), dynamic="batch"
    ),
}


def lp(p, axis):
    def compute(x):
        norm = x.abs().sum(axis, keepdim=True) if p == 1 else (x**2).sum(axis, keepdim=True).sqrt()
        return x / norm

    return compute


LP = {
    f"p={p}, axis={axis}": Case(
        f"y = LpNormalization<p={p}, axis={axis}>(x)", {"x": normal(3, 4, 5)}, lp(p, axis)
    )
    for p in (1, 2)
    for axis in (-1, 0, 1, -2)
} | {
    "defaults": Case("y = LpNormalization(x)", {"x": normal(3, 4)}, lp(2, -1)),
    "one dimension": Case("y = LpNormalization(x)", {"x": normal(4)}, lp(2, -1)),
}


GROUP = Case(
    "y = GroupNormalization<num_groups=2>(x, s, b)",
    channels(2, 6, 4, 5),
    lambda x, s, b: functional.group_norm(x, 2, s, b),
    opset=21,
    dynamic="batch",
    known=["s", "b"],
    tolerance=1e-5,
)


@pytest.mark.quick
@cases(LAYER)
def test_layer_normalization(case, dynamic):
    check(case, dynamic)


@cases(INSTANCE)
def test_instance_normalization(case, dynamic):
    check(case, dynamic)


@cases(LRN)
def test_lrn(case, dynamic):
    check(case, dynamic)


@cases(LP)
def test_lp_normalization(case, dynamic):
    check(case, dynamic)


def test_group_normalization():
    check(GROUP, dynamic=True)


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization_of_zeros(p):
    """Their gradient is 0, where PyTorch divides 0 by 0."""
    x = normal(3, 4)
    x[1] = 0

    def compute(x):
        return torch.cat([lp(p, -1)(x[:1]), 0 * x[1:2], lp(p, -1)(x[2:])])

    check(Case(f"y = LpNormalization<p={p}>(x)", {"x": x}, compute), dynamic=False)


STATISTICS = {
    f"{output} of LayerNormalization axis={axis}": Case(
        f"y, mean, inverse = LayerNormalization<axis={axis}>(x, s)",
        {"x": normal(2, 3, 4), "s": normal(*(2, 3, 4)[axis:], seed=1)},
        lambda x, s, axis=axis, output=output: _statistics(x, s, axis, output),
        outputs=("y", "mean", "inverse") if output == "all" else (output,),
        tolerance=2e-5,
        known=["s"],
        constants=() if output == "all" else ("s",),
    )
    for axis in (-1, 1)
    for output in ("all", "mean", "inverse")
    if axis == -1 or output == "all"
}


def _statistics(x, s, axis, output):
    axes = tuple(range(axis % 3, 3))
    mean = x.mean(axes, keepdim=True)
    inverse = (x.var(axes, keepdim=True, correction=0) + 1e-5).rsqrt()
    found = {"y": (x - mean) * inverse * s, "mean": mean, "inverse": inverse}
    return tuple(found.values()) if output == "all" else found[output]


@cases(STATISTICS)
def test_statistics_of_layer_normalization(case, dynamic):
    check(case, dynamic)
