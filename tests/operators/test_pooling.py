"""Gradients of pooling."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch.nn import functional

from graphopt.gradients import differentiate, prepare
from tests.helpers.gradient_oracle import Case, cases, check, distinct, normal, onnx_model

CUDA = {"provider": "CUDAExecutionProvider"}


def text(attributes):
    return ", ".join(
        f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
        for name, value in attributes.items()
    )


def windows(x, kernel, strides=None, pads=None, dilations=None, ceil_mode=0, fill=0.0):
    """All windows: [batch, channels, ..., elements of a window]; ``fill`` outside of the input."""
    rank = len(kernel)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    pads = pads or [0] * (2 * rank)
    sizes, index = list(x.shape[2:]), []
    for axis in range(rank):
        begin, end = pads[axis], pads[rank + axis]
        room = sizes[axis] + begin + end - dilations[axis] * (kernel[axis] - 1) - 1
        count = (-(-room // strides[axis]) if ceil_mode else room // strides[axis]) + 1
        if ceil_mode and (count - 1) * strides[axis] >= sizes[axis] + begin:
            count -= 1
        index.append(
            torch.arange(count)[:, None] * strides[axis]
            - begin
            + torch.arange(kernel[axis]) * dilations[axis]
        )
    wide = [int(-min(i.min(), 0)) for i in index]
    behind = [int(max(i.max() + 1 - size, 0)) for i, size in zip(index, sizes, strict=True)]
    padding = [p for pair in reversed(list(zip(wide, behind, strict=True))) for p in pair]
    x = functional.pad(x, padding, value=fill)
    for axis, i in enumerate(index):  # each axis becomes windows, elements
        x = x.index_select(2 + 2 * axis, (i + wide[axis]).reshape(-1))
        x = x.reshape(*x.shape[: 2 + 2 * axis], *i.shape, *x.shape[3 + 2 * axis :])
    order = [0, 1, *range(2, 2 + 2 * rank, 2), *range(3, 3 + 2 * rank, 2)]
    return x.permute(order).flatten(2 + rank)


def pool(kind, x, kernel, *, opset=17, data=distinct, dynamic="all", same=None, **attributes):
    """A case; ``same`` are the pads that ``auto_pad`` stands for."""
    own = {name: attributes.get(name) for name in ("strides", "pads", "dilations", "ceil_mode")}
    own = {name: value for name, value in own.items() if value is not None}
    if same:
        own["pads"] = same

    def compute(x):
        if kind == "MaxPool":
            w = windows(x, kernel, fill=-torch.inf, **own)
            return w.gather(-1, first(w)).squeeze(-1)
        w = windows(x, kernel, **own)
        if kind == "LpPool":
            p = attributes.get("p", 2)
            return w.abs().sum(-1) if p == 1 else (w.abs() ** p).sum(-1) ** (1 / p)
        inside = torch.ones_like(x)
        if attributes.get("count_include_pad") and "pads" in own:
            rank = len(kernel)
            pads = own["pads"]
            pairs = [(pads[a], pads[rank + a]) for a in reversed(range(rank))]
            inside = functional.pad(inside, [p for pair in pairs for p in pair], value=1.0)
            return w.sum(-1) / windows(inside, kernel, **own | {"pads": [0] * 2 * rank}).sum(-1)
        return w.sum(-1) / windows(inside, kernel, **own).sum(-1)

    return Case(
        f"y = {kind}<{text({'kernel_shape': kernel, **attributes})}>(x)",
        {"x": data(*x)},
        compute,
        opset=opset,
        dynamic=dynamic,
    )


def first(w):
    """Where the first of the largest elements of each window is, as PyTorch's pooling chooses."""
    return torch.tensor(np.argmax(w.detach().numpy(), axis=-1, keepdims=True))


def ties(*shape):
    """Many equal elements, most of them 0 as after a ReLU."""
    return np.maximum(np.round(normal(*shape)), 0)


def both(x, kernel, **attributes):
    return {
        f"MaxPool {data.__name__}": pool("MaxPool", x, kernel, data=data, **attributes)
        for data in (distinct, ties)
    } | {"AveragePool": pool("AveragePool", x, kernel, **attributes)}


SHAPES = {
    "2x2": ([2, 3, 6, 4], [2, 2], {"strides": [2, 2]}),
    "2x2 with a rest": ([2, 3, 7, 5], [2, 2], {"strides": [2, 2]}),
    "3x2": ([2, 3, 6, 4], [3, 2], {"strides": [3, 2]}),
    "2x1": ([2, 3, 6, 4], [2, 1], {"strides": [2, 1]}),
    "dense": ([2, 3, 6, 5], [3, 2], {}),
    "dense, padded": ([2, 3, 6, 5], [3, 3], {"pads": [1, 1, 1, 1]}),
    "overlapping": ([2, 3, 8, 7], [3, 3], {"strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "2x2 padded": ([2, 3, 6, 5], [2, 2], {"strides": [2, 2], "pads": [1, 0, 0, 1]}),
    "gaps": ([2, 3, 9, 8], [2, 1], {"strides": [3, 3]}),
    "one pixel": ([2, 3, 1, 1], [1, 1], {}),
    "whole image": ([2, 3, 4, 3], [4, 3], {}),
    "ceil": ([2, 3, 8, 7], [3, 2], {"strides": [2, 3], "ceil_mode": 1, "opset": 19}),
    "ceil 2x2": ([2, 3, 7, 5], [2, 2], {"strides": [2, 2], "ceil_mode": 1, "opset": 19}),
    "ceil, even": ([2, 3, 6, 4], [2, 2], {"strides": [2, 2], "ceil_mode": 1, "opset": 19}),
    "ceil, none behind": (
        [2, 3, 5, 4],
        [2, 1],
        {"strides": [3, 2], "pads": [1, 0, 1, 0], "ceil_mode": 1, "opset": 19, "dynamic": "batch"},
    ),
    "ceil, none behind, one over the end": (
        [2, 3, 5, 6],
        [2, 3],
        {"strides": [3, 2], "pads": [1, 0, 1, 0], "ceil_mode": 1, "opset": 19, "dynamic": "batch"},
    ),
    "ceil, dilated, none behind": (
        [2, 3, 6, 5],
        [2, 2],
        {
            "strides": [2, 2],
            "dilations": [3, 1],
            "pads": [0, 1, 0, 1],
            "ceil_mode": 1,
            "opset": 19,
            "dynamic": "batch",
        },
    ),
    "dilation": ([2, 3, 8, 7], [2, 3], {"dilations": [3, 2], "opset": 19}),
    "dilation, padded": (
        [2, 3, 8, 7],
        [3, 3],
        {"dilations": [2, 1], "strides": [1, 2], "pads": [1, 1, 1, 1], "opset": 19},
    ),
    "1-D": ([2, 3, 8], [2], {"strides": [2]}),
    "1-D, overlapping": ([2, 3, 9], [3], {"strides": [2], "pads": [1, 1]}),
    "1-D, dense": ([2, 3, 9], [3], {"pads": [1, 1]}),
    "3-D": ([2, 2, 4, 4, 6], [2, 2, 2], {"strides": [2, 2, 2]}),
    "3-D, overlapping": ([2, 2, 5, 4, 5], [3, 2, 2], {"strides": [2, 1, 2], "pads": [1] * 6}),
}
POOLS = {
    f"{kind}, {name}": case
    for name, (x, kernel, attributes) in SHAPES.items()
    for kind, case in both(x, kernel, **attributes).items()
} | {
    "AveragePool, count_include_pad": pool(
        "AveragePool", [2, 3, 8, 7], [3, 3], strides=[2, 2], pads=[1] * 4, count_include_pad=1
    ),
    "AveragePool, dense, count_include_pad": pool(
        "AveragePool", [2, 3, 6, 5], [3, 3], pads=[1] * 4, count_include_pad=1
    ),
    "AveragePool, ceil, none behind, count_include_pad": Case(
        "y = AveragePool<kernel_shape=[2, 1], strides=[3, 2], pads=[1, 0, 1, 0], ceil_mode=1, "
        "count_include_pad=1>(x)",
        {"x": distinct(2, 3, 5, 4)},
        lambda x: functional.avg_pool2d(x, (2, 1), (3, 2), (1, 0), True),
        opset=19,
        dynamic="batch",
    ),
    "LpPool, ceil, none behind": pool(
        "LpPool",
        [2, 3, 5],
        [2],
        strides=[3],
        pads=[1, 1],
        ceil_mode=1,
        data=normal,
        opset=18,
        dynamic="batch",
    ),
    "AveragePool, opset 21": pool(
        "AveragePool", [2, 3, 8, 7], [3, 3], strides=[2, 2], pads=[1] * 4, opset=21
    ),
    "MaxPool by columns": pool("MaxPool", [2, 3, 6, 5], [3, 2], storage_order=1),
    "MaxPool by columns, read": dataclasses.replace(
        pool("MaxPool", [2, 3, 6, 5], [3, 2]),
        node="y, i = MaxPool<kernel_shape=[3, 2], storage_order=1>(x)",
    ),
    "LpPool": pool("LpPool", [2, 3, 6, 5], [3, 2], strides=[2, 1], data=normal, opset=18),
    "LpPool, p=1": pool("LpPool", [2, 3, 6, 5], [2, 2], p=1, data=normal, opset=18),
    "LpPool, p=3": pool("LpPool", [2, 3, 6, 4], [2, 2], strides=[2, 2], p=3, data=normal, opset=18),
    "LpPool, padded": pool("LpPool", [2, 3, 6, 5], [3, 3], pads=[1] * 4, data=normal, opset=18),
}
AUTOMATIC = {
    f"{kind}, {mode}{suffix}": pool(
        kind, x, [3, 2], auto_pad=mode, same=same, dynamic="batch", **strides
    )
    for kind in ("MaxPool", "AveragePool")
    for mode, x, same, strides, suffix in (
        ("SAME_UPPER", [2, 3, 6, 5], [1, 0, 1, 1], {}, ""),
        ("SAME_LOWER", [2, 3, 6, 5], [1, 1, 1, 0], {}, ""),
        ("SAME_UPPER", [2, 3, 6, 5], [0, 0, 1, 1], {"strides": [2, 2]}, ", stride"),
        ("SAME_LOWER", [2, 3, 6, 5], [1, 1, 0, 0], {"strides": [2, 2]}, ", stride"),
        ("VALID", [2, 3, 6, 5], [0, 0, 0, 0], {"strides": [2, 2]}, ", stride"),
    )
}
GLOBAL = {
    f"{kind} of {len(shape)} dimensions": Case(f"y = {kind}(x)", {"x": distinct(*shape)}, compute)
    for shape in ([2, 3, 5], [2, 3, 5, 4], [2, 3, 2, 3, 4], [2, 3, 1, 1])
    for kind, compute in (
        ("GlobalAveragePool", lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True)),
        ("GlobalMaxPool", lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True)),
        ("GlobalLpPool", lambda x: (x**2).sum(tuple(range(2, x.ndim)), keepdim=True).sqrt()),
    )
} | {
    "GlobalMaxPool, ties": Case(
        "y = GlobalMaxPool(x)",
        {"x": ties(2, 3, 5, 4)},
        lambda x: functional.adaptive_max_pool2d(x, 1),
    ),
    "GlobalLpPool, p=1": Case(
        "y = GlobalLpPool<p=1>(x)",
        {"x": normal(2, 3, 5, 4)},
        lambda x: x.abs().sum((2, 3), keepdim=True),
    ),
    "GlobalLpPool, p=3": Case(
        "y = GlobalLpPool<p=3>(x)",
        {"x": normal(2, 3, 5, 4)},
        lambda x: (x.abs() ** 3).sum((2, 3), keepdim=True) ** (1 / 3),
    ),
}


@pytest.mark.quick
@cases(POOLS | AUTOMATIC | GLOBAL)
def test_pooling(case, dynamic):
    check(case, dynamic)


@pytest.mark.parametrize("name", [name for name in POOLS if "MaxPool" in name])
def test_max_pooling_for_cuda(name):
    check(dataclasses.replace(POOLS[name], options=CUDA), dynamic=False)


@pytest.mark.parametrize("name", ["AveragePool, overlapping", "MaxPool ties, 2x2"])
def test_only_the_batch_is_unknown(name):
    check(dataclasses.replace(POOLS[name], dynamic="batch"), dynamic=True)


def operators(case, **options):
    model, statistics = prepare(onnx_model(case, ["x"], dynamic=False), ["x"])
    differentiate(model, ["x"], model.graph.outputs[0], statistics, **options)
    return [node.op_type for node in model.graph]


def test_max_pooling_without_indices():
    assert "ScatterElements" not in operators(POOLS["MaxPool ties, 2x2"])
    assert "ScatterElements" in operators(POOLS["MaxPool ties, 2x2"], **CUDA)
    assert "MaxPoolGradient1" in operators(POOLS["MaxPool ties, overlapping"])
    assert "ScatterElements" in operators(POOLS["MaxPool ties, overlapping"], **CUDA)


@pytest.mark.parametrize("strides", [1, 2])
def test_max_pool_in_float16(strides):
    node = f"MaxPool<kernel_shape=[2, 2], strides=[{strides}, {strides}]>(h)"
    x = distinct(1, 2, 4, 4)
    case = Case(
        f"h = Cast<to=10>(x) g = {node} y = Cast<to=1>(g)",
        {"x": x},
        lambda x: functional.max_pool2d(x, 2, strides),
        tolerance=2e-3,
    )
    check(case, dynamic=False)
    check(case, dynamic=True)


def test_norm_of_zeros():
    for node in ("LpPool<kernel_shape=[2, 2]>(x)", "GlobalLpPool(x)", "GlobalLpPool<p=3>(x)"):
        zeros = np.zeros((1, 1, 2, 2), np.float32)
        case = Case(f"y = {node}", {"x": zeros}, lambda x: 0 * x.sum((2, 3), keepdim=True))
        check(case, dynamic=False)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            (
                "y = AveragePool<kernel_shape=[2, 3], strides=[3, 2], pads=[1, 0, 1, 0], "
                "ceil_mode=1, count_include_pad=1>(x)"
            ),
            (
                "AveragePool 'y': with ceil_mode=1, its last window would lie behind the input, "
                "which not all versions of ONNX Runtime leave out; export it with ceil_mode=0"
            ),
        ),
        (
            'y = AveragePool<kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER">(x)',
            (
                "AveragePool 'y': its gradient needs the padding that auto_pad stands for, "
                "which depends on a size that is not known; export the model with explicit pads"
                " or static sizes"
            ),
        ),
    ],
)
def test_refused(node, message):
    shape = [5, 6] if "ceil" in node else [4, 4]
    case = Case(node, {"x": distinct(1, 1, *shape)}, lambda x: functional.avg_pool2d(x, 2))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(case, dynamic="auto_pad" in node)
