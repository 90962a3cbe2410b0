"""The padding that ``auto_pad`` stands for."""

from collections.abc import Sequence


def same_padding(
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    sizes: Sequence[object],
) -> tuple[list[int], list[int]] | None:
    """The padding with which there are as many windows as input elements / stride, in halves.

    Args:
        kernel: How many elements a window takes along each spatial axis.
        strides: How far the next window is.
        dilations: How far the next element of a window is.
        sizes: Of the input; what is no int is not known.

    Returns:
        The smaller halves and the larger ones; None if they depend on a size that is not known.
    """
    smaller, larger = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = dilation * (width - 1)
        if stride > 1:
            if not isinstance(size, int):
                return None
            total = max((-(-size // stride) - 1) * stride + total + 1 - size, 0)
        smaller.append(total // 2)
        larger.append(total - total // 2)
    return smaller, larger
