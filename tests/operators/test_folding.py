"""Gradients of MaxUnpool and Col2Im."""

import numpy as np
import pytest
from torch.nn import functional

from tests.helpers.gradient_oracle import Case, cases, check, distinct, normal


def put(*shape):
    def compute(x, i, *_):
        image = x.new_zeros(int(np.prod(shape)))
        return image.scatter(0, i.flatten(), x.flatten()).reshape(shape)

    return compute


def places(*shape, count):
    """Some of so many elements, none of them twice."""
    some = np.random.default_rng(0).permutation(count)[: np.prod(shape)]
    return some.reshape(shape)


def unpooled(x, **_):
    y, indices = functional.max_pool2d(x, 2, return_indices=True)
    return functional.max_unpool2d(y, indices, 2)


UNPOOLED = {
    "MaxUnpool": Case(
        "y = MaxUnpool<kernel_shape=[2, 2], strides=[2, 2]>(x, i)",
        {"x": normal(2, 3, 2, 3), "i": places(2, 3, 2, 3, count=144)},
        put(2, 3, 4, 6),
    ),
    "MaxUnpool, padded": Case(
        "y = MaxUnpool<kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 1, 1]>(x, i)",
        {"x": normal(2, 1, 2, 3), "i": places(2, 1, 2, 3, count=40)},
        put(2, 1, 4, 5),
    ),
    "MaxUnpool of a volume": Case(
        "y = MaxUnpool<kernel_shape=[2, 1, 2], strides=[2, 1, 2]>(x, i)",
        {"x": normal(1, 2, 2, 3, 1), "i": places(1, 2, 2, 3, 1, count=48)},
        put(1, 2, 4, 3, 2),
    ),
    "MaxUnpool to a shape": Case(
        "y = MaxUnpool<kernel_shape=[2, 2], strides=[2, 2]>(x, i, s)",
        {
            "x": normal(1, 2, 2, 2),
            "i": places(1, 2, 2, 2, count=50),
            "s": np.array([1, 2, 5, 5]),
        },
        put(1, 2, 5, 5),
    ),
    "MaxPool and MaxUnpool": Case(
        "h, i = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x) "
        "y = MaxUnpool<kernel_shape=[2, 2], strides=[2, 2]>(h, i)",
        {"x": distinct(2, 3, 4, 6)},
        unpooled,
    ),
}


def fold(x, image, block, at="", **attributes):
    names = {"strides": "stride", "pads": "padding", "dilations": "dilation"}
    given = ", ".join(f"{name}={value}" for name, value in attributes.items())
    pairs = {names[name]: value[:2] for name, value in attributes.items()}
    nodes = {
        "": "y = Col2Im{}(x, s, k)",
        "at run time": "t = Add(s, nought) l = Add(k, nought) y = Col2Im{}(x, t, l)",
    }
    return Case(
        nodes[at].format(f"<{given}>" if given else ""),
        {"x": normal(*x), "s": np.array(image), "k": np.array(block)},
        lambda x, *_: functional.fold(x, image, block, **pairs),
        opset=18,
    )


FOLDED = {
    "Col2Im": fold((2, 12, 12), (4, 6), (2, 3)),
    "Col2Im, side by side": fold((2, 12, 6), (4, 6), (2, 2), strides=[2, 2]),
    "Col2Im, all attributes": fold(
        (1, 12, 12), (7, 9), (3, 2), strides=[2, 3], pads=[2, 1, 2, 1], dilations=[2, 2]
    ),
    "Col2Im at run time": fold((2, 12, 12), (4, 6), (2, 3), "at run time"),
}


@pytest.mark.quick
@cases(UNPOOLED | FOLDED)
def test_gradients(case, dynamic):
    check(case, dynamic)


def test_an_element_that_another_one_overwrites():
    """Each gets what stands there, as with PyTorch."""
    case = Case(
        "y = MaxUnpool<kernel_shape=[2, 2], strides=[2, 2]>(x, i)",
        {"x": normal(1, 1, 2, 2), "i": np.array([[[[5, 5], [7, 5]]]])},
        lambda x, i: x.new_zeros(16).scatter(0, i.flatten(), x.flatten()).reshape(1, 1, 4, 4),
    )
    check(case, dynamic=False)
