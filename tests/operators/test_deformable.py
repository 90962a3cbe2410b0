"""Gradients of DeformConv, against the same in PyTorch's grid_sample."""

import dataclasses
import re

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch.nn import functional

from graphopt.gradients import prepare
from tests.helpers.gradient_oracle import Case, cases, check, check_types, normal, onnx_model


def deformed(
    x,
    weight,
    offset,
    bias=None,
    mask=None,
    *,
    strides=1,
    pads=0,
    dilations=1,
    group=1,
    offset_group=1,
):
    """For each element of a window, the image at its places, times the mask and the weight."""
    rank = x.ndim - 2
    images, kernel, out = len(x), weight.shape[2:], offset.shape[2:]
    count = int(np.prod(kernel))
    offset = offset.reshape(images * offset_group, count, rank, *out)
    x = x.reshape(images * offset_group, -1, *x.shape[2:])
    columns = []
    for number, at in enumerate(np.ndindex(*kernel)):
        starts = [
            torch.arange(n) * strides - pads + k * dilations for n, k in zip(out, at, strict=True)
        ]
        places = torch.stack(torch.meshgrid(*starts, indexing="ij")) + offset[:, number]
        sizes = torch.tensor(x.shape[2:]).reshape(-1, *[1] * rank)
        # Exactly as it comes back: only powers of two divide.
        grid = ((places * 2 + 1) / sizes - 1).flip(1).movedim(1, -1)
        columns.append(functional.grid_sample(x, grid, align_corners=False))
    columns = torch.stack(columns, 2)
    if mask is not None:
        columns = columns * mask.reshape(images * offset_group, 1, count, *out)
    columns = columns.reshape(images, group, -1, count, *out)
    weight = weight.reshape(group, -1, *weight.shape[1:2], count)
    y = torch.einsum("gock,ngck...->ngo...", weight, columns).flatten(1, 2)
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


def layer(x, kernel, out, outputs=4, bias=False, mask=False, offset=1.5, **attributes):
    """A layer whose offsets reach over the edges of the image."""
    group, offset_group = attributes.get("group", 1), attributes.get("offset_group", 1)
    count, rank = offset_group * int(np.prod(kernel)), len(kernel)
    inputs = {
        "x": normal(*x),
        "w": normal(outputs, x[1] // group, *kernel),
        "o": offset * normal(x[0], count * rank, *out),
    }
    if bias:
        inputs["b"] = normal(outputs)
    if mask:
        inputs["m"] = normal(x[0], count, *out)
    names = {"strides": rank, "pads": 2 * rank, "dilations": rank}
    given = ", ".join(
        f"{name}={[value] * names[name] if name in names else value}"
        for name, value in attributes.items()
    )
    operands = "x, w, o" + (", b" if bias else "") + (", m" if bias and mask else "")
    operands += ", , m" if mask and not bias else ""
    return Case(
        f"y = DeformConv{f'<{given}>' if given else ''}({operands})",
        inputs,
        lambda x, w, o, *more: deformed(
            x, w, o, more[0] if bias else None, more[-1] if mask else None, **attributes
        ),
        opset=19,
        known=("w",),
    )


LAYERS = {
    "plain": layer((2, 3, 5, 6), (3, 2), (3, 5)),
    "bias and mask": layer((2, 4, 5, 6), (3, 3), (3, 4), bias=True, mask=True),
    "groups, mask without bias": layer(
        (2, 4, 5, 6), (2, 3), (4, 4), 6, mask=True, group=2, offset_group=4
    ),
    "groups of channels": layer((1, 4, 5, 6), (1, 3), (5, 4), group=4, offset_group=2),
    "strides, pads and dilations": layer(
        (2, 2, 7, 9), (3, 3), (3, 4), bias=True, strides=2, pads=1, dilations=2
    ),
    "no offset": layer((1, 2, 4, 8), (3, 3), (4, 8), offset=0, pads=1),
    "a volume": layer((1, 2, 3, 4, 2), (2, 2, 2), (2, 3, 1), mask=True, offset_group=2),
}


@pytest.mark.quick
@cases(LAYERS)
def test_gradients(case, dynamic):
    check(case, dynamic)


@pytest.mark.any_runtime
@pytest.mark.parametrize("name", ["bias and mask", "strides, pads and dilations"])
def test_what_is_written_out_computes_the_same(name):
    forward = onnx_model(LAYERS[name], [], dynamic=False)
    (expected,) = ReferenceEvaluator(forward).run(None, {})
    written = ir.to_proto(prepare(forward, ["x", "w"])[0])
    assert "DeformConv" not in {node.op_type for node in written.graph.node}
    (got,) = onnxruntime.InferenceSession(written.SerializeToString()).run(None, {})
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.any_runtime
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_dtypes(dtype):
    check_types(LAYERS["bias and mask"], dtype)


@pytest.mark.any_runtime
def test_a_weight_of_unknown_shape():
    case = dataclasses.replace(LAYERS["plain"], known=())
    message = (
        "DeformConv 'y': the shape of its weight 'w' is not known; "
        "declare the shapes of the model's inputs"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(case, dynamic=True)
