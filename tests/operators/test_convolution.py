"""Gradients of convolutions and of transposed ones."""

import dataclasses
import re

import pytest
import torch
from torch.nn import functional

from graphopt.gradients import differentiate, prepare
from graphopt.operators import _convolution_weight
from tests.helpers.gradient_oracle import Case, cases, check, normal, onnx_model

CUDA = {"provider": "CUDAExecutionProvider"}
CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def text(attributes):
    return ", ".join(
        f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
        for name, value in attributes.items()
    )


def padded(x, pads):
    """Padding by ONNX's list: all beginnings, then all ends."""
    rank = len(pads) // 2
    pairs = [(pads[axis], pads[rank + axis]) for axis in reversed(range(rank))]
    return functional.pad(x, [size for pair in pairs for size in pair])


def conv(x, w, *, pads=None, bias=True, auto_pad=None, opset=17, dynamic="batch", **attributes):
    """A case; ``pads`` are those that PyTorch uses where ONNX has ``auto_pad``."""
    rank = len(w) - 2
    pads = pads or [0] * (2 * rank)
    onnx_attributes = attributes | ({"auto_pad": auto_pad} if auto_pad else {"pads": pads})

    def compute(x, w, b=None):
        return CONV[rank](
            padded(x, pads),
            w,
            b,
            stride=attributes.get("strides", 1),
            dilation=attributes.get("dilations", 1),
            groups=attributes.get("group", 1),
        )

    inputs = {"x": normal(*x), "w": normal(*w, seed=1)}
    if bias:
        inputs["b"] = normal(w[0], seed=2)
    return Case(
        f"y = Conv<{text(onnx_attributes)}>({', '.join(inputs)})",
        inputs,
        compute,
        opset=opset,
        dynamic=dynamic,
        known=["w", "b"],
    )


def transposed(x, w, *, pads=None, bias=True, extra=None, dynamic="batch", **attributes):
    rank = len(w) - 2
    pads = pads or [0] * (2 * rank)
    extra = extra or [0] * rank
    group = attributes.get("group", 1)
    onnx_attributes = attributes | {"pads": pads, "output_padding": extra}

    def compute(x, w, b=None):
        stride = attributes.get("strides", [1] * rank)
        dilation = attributes.get("dilations", [1] * rank)
        full = TRANSPOSED[rank](x, w, None, stride, 0, 0, group, dilation)
        full = functional.pad(full, [size for more in reversed(extra) for size in (0, more)])
        for axis in range(rank):
            size = full.shape[2 + axis] - pads[axis] - pads[rank + axis]
            full = full.narrow(2 + axis, pads[axis], size)
        return full if b is None else full + b.reshape(-1, *[1] * rank)

    inputs = {"x": normal(*x), "w": normal(*w, seed=1)}
    if bias:
        inputs["b"] = normal(w[1] * group, seed=2)
    return Case(
        f"y = ConvTranspose<{text(onnx_attributes)}>({', '.join(inputs)})",
        inputs,
        compute,
        dynamic=dynamic,
        known=["w", "b"],
    )


IMAGES = {
    "3x3": conv([2, 3, 7, 6], [4, 3, 3, 3], pads=[1] * 4),
    "3x3 of many channels": conv([2, 8, 7, 6], [4, 8, 3, 3], pads=[1] * 4),
    "without padding": conv([2, 3, 7, 6], [4, 3, 3, 3]),
    "without bias": conv([2, 3, 7, 6], [4, 3, 3, 3], bias=False),
    "kernel_shape": conv([2, 3, 7, 6], [4, 3, 3, 2], kernel_shape=[3, 2]),
    "uneven": conv([2, 3, 9, 7], [4, 3, 2, 4], pads=[0, 2, 1, 3], strides=[2, 3]),
    "stride 2": conv([2, 4, 8, 8], [6, 4, 3, 3], pads=[1] * 4, strides=[2, 2]),
    "stride 2, odd": conv([2, 4, 7, 9], [6, 4, 3, 3], pads=[1] * 4, strides=[2, 2]),
    "stride beyond the kernel": conv([2, 3, 9, 8], [4, 3, 2, 2], strides=[4, 3]),
    "stride that leaves a rest": conv([2, 3, 10, 9], [4, 3, 1, 3], strides=[4, 4]),
    "dilation": conv([2, 3, 9, 8], [4, 3, 3, 3], pads=[2] * 4, dilations=[2, 2]),
    "dilation and stride": conv(
        [2, 3, 10, 9], [4, 3, 3, 2], pads=[2, 1, 0, 3], dilations=[2, 3], strides=[2, 2]
    ),
    "dilation of rows": conv([2, 3, 9, 8], [4, 3, 3, 3], pads=[2, 1, 2, 1], dilations=[2, 1]),
    "dilation of a single column": conv([2, 3, 7, 6], [4, 3, 3, 1], dilations=[1, 2]),
    "pointwise": conv([2, 3, 5, 4], [4, 3, 1, 1]),
    "pointwise on a large image": conv([2, 3, 17, 16], [4, 3, 1, 1]),
    "pointwise, stride": conv([2, 3, 5, 4], [4, 3, 1, 1], strides=[2, 2]),
    "pointwise, large, stride": conv([2, 3, 33, 34], [4, 3, 1, 1], strides=[2, 2]),
    "pointwise, padded": conv([2, 3, 5, 4], [4, 3, 1, 1], pads=[1, 0, 1, 2]),
    "padding beyond the kernel": conv([2, 3, 5, 4], [4, 3, 2, 2], pads=[2, 2, 3, 0]),
    "the last window ends before the image": conv(
        [2, 3, 1, 6], [4, 3, 1, 3], pads=[4, 0, 0, 0], strides=[3, 1]
    ),
    "the last window ends far before it": conv(
        [2, 3, 5, 5], [4, 3, 5, 1], pads=[7, 0, 0, 0], strides=[12, 1]
    ),
    "groups before the image": conv(
        [2, 6, 1, 6], [4, 3, 2, 3], pads=[4, 0, 0, 0], strides=[4, 1], group=2, dilations=[1, 2]
    ),
    "depthwise before the image": conv(
        [2, 4, 2, 3], [4, 1, 1, 3], pads=[4, 1, 0, 1], strides=[4, 1], group=4
    ),
    "kernel as large as the image": conv([2, 3, 5, 4], [4, 3, 5, 4]),
    "patches": conv([2, 3, 8, 9], [4, 3, 4, 3], strides=[4, 3]),
    "large kernel": conv([2, 3, 20, 18], [4, 3, 7, 7], pads=[3] * 4, strides=[2, 2]),
    "groups": conv([2, 6, 7, 6], [4, 3, 3, 3], pads=[1] * 4, group=2),
    "groups, stride": conv([2, 6, 8, 7], [4, 3, 3, 3], pads=[1] * 4, group=2, strides=[2, 2]),
    "groups, dilation": conv([2, 6, 8, 7], [4, 3, 3, 3], pads=[2] * 4, group=2, dilations=[2, 2]),
    "pointwise groups": conv([2, 6, 5, 4], [4, 3, 1, 1], group=2),
    "depthwise": conv([2, 5, 7, 6], [5, 1, 3, 3], pads=[1] * 4, group=5),
    "depthwise 5x5": conv([2, 4, 9, 8], [4, 1, 5, 5], pads=[2] * 4, group=4),
    "depthwise, stride": conv([2, 4, 8, 9], [4, 1, 3, 3], pads=[1] * 4, group=4, strides=[2, 2]),
    "depthwise, uneven": conv(
        [2, 4, 8, 9], [4, 1, 2, 3], pads=[0, 2, 1, 1], group=4, strides=[1, 2], dilations=[2, 2]
    ),
    "depthwise, wide": conv([2, 2, 4, 55], [2, 1, 3, 3], pads=[1] * 4, group=2),
    "depthwise, wide, stride": conv(
        [2, 2, 5, 80], [2, 1, 3, 5], pads=[1, 2, 1, 2], group=2, strides=[2, 2]
    ),
    "depthwise, much padding": conv([2, 2, 3, 4], [2, 1, 3, 3], pads=[30] * 4, group=2),
    "depthwise, two of each": conv([2, 3, 7, 6], [6, 1, 3, 3], pads=[1] * 4, group=3),
    "depthwise, two of each, wide": conv([2, 2, 4, 30], [4, 1, 3, 3], pads=[1] * 4, group=2),
    "depthwise, one channel": conv([2, 1, 7, 6], [3, 1, 3, 3], pads=[1] * 4),
    "one example": conv([1, 3, 7, 6], [4, 3, 3, 3], pads=[1] * 4),
    "one pixel": conv([2, 3, 1, 1], [4, 3, 1, 1]),
    "opset 21": conv([2, 3, 7, 6], [4, 3, 3, 3], pads=[1] * 4, opset=21),
}
AUTOMATIC = {
    "SAME_UPPER": conv([2, 3, 7, 6], [4, 3, 3, 2], auto_pad="SAME_UPPER", pads=[1, 0, 1, 1]),
    "SAME_LOWER": conv([2, 3, 7, 6], [4, 3, 3, 2], auto_pad="SAME_LOWER", pads=[1, 1, 1, 0]),
    "SAME_UPPER, stride": conv(
        [2, 3, 8, 7], [4, 3, 3, 3], auto_pad="SAME_UPPER", pads=[0, 1, 1, 1], strides=[2, 2]
    ),
    "SAME_LOWER, stride": conv(
        [2, 3, 8, 7], [4, 3, 3, 3], auto_pad="SAME_LOWER", pads=[1, 1, 0, 1], strides=[2, 2]
    ),
    "SAME_UPPER, stride beyond the kernel": conv(
        [2, 3, 8, 7], [4, 3, 1, 1], auto_pad="SAME_UPPER", strides=[3, 3]
    ),
    "VALID": conv([2, 3, 7, 6], [4, 3, 3, 2], auto_pad="VALID"),
}
OTHER_RANKS = {
    "1-D": conv([2, 3, 9], [4, 3, 3], pads=[1, 1]),
    "1-D, stride": conv([2, 3, 10], [4, 3, 3], pads=[2, 1], strides=[2]),
    "1-D, dilation": conv([2, 3, 10], [4, 3, 3], pads=[2, 2], dilations=[2]),
    "1-D, depthwise": conv([2, 4, 9], [4, 1, 3], pads=[1, 1], group=4),
    "1-D, depthwise, causal": conv([2, 4, 9], [4, 1, 4], pads=[3, 0], group=4, strides=[2]),
    "1-D, depthwise, two of each": conv([2, 2, 9], [4, 1, 3], pads=[1, 1], group=2),
    "1-D, groups": conv([2, 4, 9], [6, 2, 3], pads=[1, 1], group=2, strides=[3]),
    "1-D, pointwise": conv([2, 4, 9], [6, 4, 1]),
    "3-D": conv([2, 3, 4, 5, 6], [4, 3, 3, 2, 3], pads=[1, 0, 1, 1, 1, 0]),
    "3-D, stride": conv([2, 3, 5, 6, 7], [4, 3, 3, 3, 2], pads=[1] * 6, strides=[2, 1, 2]),
    "3-D, dilation": conv([2, 3, 5, 6, 7], [4, 3, 2, 2, 2], dilations=[1, 2, 2]),
    "3-D, depthwise": conv([2, 3, 4, 5, 6], [3, 1, 3, 3, 3], pads=[1] * 6, group=3),
    "3-D, groups": conv([2, 4, 4, 5, 6], [6, 2, 3, 3, 3], pads=[1] * 6, group=2),
}
CONVOLUTIONS = IMAGES | AUTOMATIC | OTHER_RANKS
TRANSPOSES = {
    "plain": transposed([2, 3, 5, 4], [3, 4, 3, 3]),
    "without bias": transposed([2, 3, 5, 4], [3, 4, 3, 3], bias=False),
    "stride": transposed([2, 3, 5, 4], [3, 4, 3, 3], pads=[1] * 4, strides=[2, 2]),
    "output_padding": transposed(
        [2, 3, 5, 4], [3, 4, 3, 3], pads=[1] * 4, strides=[2, 3], extra=[1, 2]
    ),
    "uneven": transposed([2, 3, 5, 4], [3, 4, 2, 4], pads=[0, 1, 1, 2], strides=[3, 2]),
    "dilation": transposed([2, 3, 5, 4], [3, 4, 3, 2], pads=[1, 0, 2, 1], dilations=[2, 3]),
    "groups": transposed([2, 4, 5, 4], [4, 3, 3, 3], pads=[1] * 4, group=2, strides=[2, 2]),
    "depthwise": transposed([2, 4, 5, 4], [4, 1, 4, 4], pads=[1] * 4, group=4, strides=[2, 2]),
    "pointwise": transposed([2, 3, 5, 4], [3, 4, 1, 1]),
    "1-D": transposed([2, 3, 5], [3, 4, 4], pads=[1, 1], strides=[2]),
    "3-D": transposed([2, 3, 3, 4, 3], [3, 2, 3, 2, 3], pads=[1] * 6, strides=[2, 1, 2]),
}


def varied(table, **changes):
    suffix = changes["options"]["provider"]
    return {f"{name}, {suffix}": dataclasses.replace(c, **changes) for name, c in table.items()}


UNKNOWN_SIZES = {
    name: case for name, case in CONVOLUTIONS.items() if "SAME" not in name or "stride" not in name
}


@pytest.mark.quick
@cases(CONVOLUTIONS | varied(CONVOLUTIONS, options=CUDA, dynamic="none"))
def test_convolution(case, dynamic):
    check(case, dynamic)


@pytest.mark.parametrize("name", UNKNOWN_SIZES)
def test_convolution_of_unknown_size(name):
    check(dataclasses.replace(UNKNOWN_SIZES[name], dynamic="all"), dynamic=True)


@pytest.mark.parametrize("name", ["3x3", "uneven", "kernel_shape", "pointwise", "1-D, stride"])
def test_weight_of_unknown_channels(name):
    case = dataclasses.replace(CONVOLUTIONS[name], known=[])
    check(case, dynamic=True)


@pytest.mark.quick
@cases(TRANSPOSES | varied(TRANSPOSES, options=CUDA, dynamic="none"))
def test_transposed_convolution(case, dynamic):
    check(case, dynamic)


@pytest.mark.parametrize("name", TRANSPOSES)
def test_transposed_convolution_of_unknown_size(name):
    check(dataclasses.replace(TRANSPOSES[name], dynamic="all"), dynamic=True)


# `by_swapped_roles` is what groups get on CUDA, `by_band` all depthwise ones on the CPU: itself, or
# as the body of a function for which there is a kernel.
POINTWISE = ["pointwise", "pointwise, stride", "1-D, pointwise"]
FORMULATIONS = {
    _convolution_weight.by_channels_last: ["depthwise, stride", "1-D, depthwise", "pointwise"],
    _convolution_weight.by_product: POINTWISE,
    _convolution_weight.by_product_of_each_example: POINTWISE,
    _convolution_weight.by_product_of_patches: ["patches", "pointwise", "1-D, pointwise"],
    _convolution_weight.by_product_of_columns: [
        name for name, case in CONVOLUTIONS.items() if "group" not in case.node
    ],
    _convolution_weight.by_product_of_each_tap: [
        name for name, case in CONVOLUTIONS.items() if "group" not in case.node
    ],
    _convolution_weight.by_sum_of_each_tap: ["depthwise", "depthwise, uneven", "3-D, depthwise"],
}


@pytest.mark.parametrize(
    ("formulation", "name"),
    [(formulation, name) for formulation, names in FORMULATIONS.items() for name in names],
)
def test_each_formulation_of_the_weight(monkeypatch, formulation, name):
    monkeypatch.setattr(_convolution_weight, "choose", lambda _layer, _provider: formulation)
    check(CONVOLUTIONS[name], dynamic=False)


@pytest.mark.parametrize("name", FORMULATIONS[_convolution_weight.by_product_of_columns])
def test_columns_axis_by_axis(monkeypatch, name):
    columns = _convolution_weight.by_product_of_columns
    monkeypatch.setattr(_convolution_weight, "choose", lambda _layer, _provider: columns)
    monkeypatch.setattr(_convolution_weight, "_FEW_TAPS", 0)
    check(CONVOLUTIONS[name], dynamic=False)


def chosen(x, w, provider="CPUExecutionProvider", **attributes):
    """The formulation for a convolution."""
    seen = []
    case = conv(x, w, bias=False, **attributes)
    with pytest.MonkeyPatch.context() as patch:
        choose = _convolution_weight.choose
        patch.setattr(_convolution_weight, "choose", lambda *a: seen.append(choose(*a)) or seen[-1])
        model, statistics = prepare(onnx_model(case, ["x", "w"], dynamic=False), ["x", "w"])
        differentiate(model, ["x", "w"], model.graph.outputs[0], statistics, provider)
    return seen[0].__name__.removeprefix("by_")


def test_choice_of_formulation():
    assert chosen([2, 8, 9, 9], [4, 8, 3, 3]) == "channels_last"
    assert chosen([2, 8, 9, 9], [4, 2, 3, 3], group=4) == "channels_last"
    assert chosen([2, 8, 9, 9], [4, 8, 3, 3], dilations=[2, 2]) == "product_of_each_tap"
    assert chosen([2, 8, 9, 9], [4, 8, 1, 1]) == "product"
    assert chosen([2, 8, 19, 19], [4, 8, 1, 1]) == "product_of_each_example"
    assert chosen([2, 8, 9, 9], [8, 1, 3, 3], group=8) == "kernel"
    assert chosen([2, 8, 9, 9], [16, 1, 3, 3], group=8) == "band"
    assert chosen([2, 8, 9], [8, 1, 3], group=8) == "sum_of_each_tap"
    assert chosen([2, 8, 9, 9], [4, 8, 3, 3], **CUDA) == "product_of_columns"
    assert chosen([2, 128, 99, 99], [4, 128, 3, 3], **CUDA) == "product_of_each_tap"
    assert chosen([2, 8, 9, 9], [4, 8, 3, 3], strides=[3, 3], **CUDA) == "product_of_patches"
    assert chosen([2, 8, 9, 9], [4, 8, 1, 1], **CUDA) == "product_of_patches"
    assert chosen([2, 8, 19, 19], [4, 8, 1, 1], **CUDA) == "product_of_each_example"
    assert chosen([2, 8, 9, 9], [8, 1, 3, 3], group=8, **CUDA) == "sum_of_each_tap"
    assert chosen([2, 8, 9, 9], [4, 4, 3, 3], group=2, **CUDA) == "swapped_roles"


# ConvTranspose with the padding that `auto_pad` or `output_shape` stands for.
AUTOMATIC_TRANSPOSES = {
    "VALID": ({"auto_pad": "VALID", "strides": [2, 2]}, {"pads": [0, 0, 0, 0]}),
    "SAME_UPPER": ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"pads": [0, 0, 1, 1]}),
    "SAME_LOWER": ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {"pads": [1, 1, 0, 0]}),
    "output_shape": ({"output_shape": [8, 7], "strides": [2, 2]}, {"pads": [2, 1, 1, 1]}),
    "output_shape, SAME_UPPER": (
        {"output_shape": [8, 7], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"pads": [1, 1, 2, 1]},
    ),
}


@pytest.mark.parametrize("name", AUTOMATIC_TRANSPOSES)
def test_transposed_convolution_with_automatic_padding(name):
    automatic, explicit = AUTOMATIC_TRANSPOSES[name]
    case = transposed([2, 3, 5, 4], [3, 4, 3, 3], strides=[2, 2], **explicit)
    check(dataclasses.replace(case, node=f"y = ConvTranspose<{text(automatic)}>(x, w, b)"), False)


@pytest.mark.parametrize(
    ("node", "dynamic", "message"),
    [
        (
            'y = Conv<auto_pad="SAME_UPPER", strides=[2, 2]>(x, w)',
            True,
            (
                "Conv 'y': its gradient needs the padding that auto_pad stands for, which "
                "depends on a size that is not known; export the model with explicit pads or "
                "static sizes"
            ),
        ),
        (
            'y = ConvTranspose<auto_pad="SAME_UPPER", strides=[2, 2]>(x, w)',
            True,
            (
                "ConvTranspose 'y': its gradient needs sizes of 'x', whose shape is [?, ?, ?, ?]; "
                "declare the model's inputs so that only the batch is dynamic"
            ),
        ),
        (
            "y = ConvTranspose<output_shape=[11, 10]>(x, w)",
            False,
            (
                "ConvTranspose 'y': output_shape=[11, 10] is more than its windows cover; "
                "export it with pads"
            ),
        ),
    ],
)
def test_refused(node, dynamic, message):
    shape = [1, 1, 11, 10] if "output_shape" in node else [1, 1, 4, 4]
    if "Transpose" in node and dynamic:
        shape = [1, 1, 8, 8]
    case = Case(
        node,
        {"x": normal(1, 1, *([8, 8] if "y = Conv<" in node else [4, 4])), "w": normal(1, 1, 3, 3)},
        lambda x, w: torch.zeros(shape) + 0 * x.sum() * w.sum(),
        known=["w"],
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(case, dynamic)
