"""The windows that convolution and pooling slide over an input of shape [batch, channels, ...]."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.builder import Operand
from graphopt.operators.backward import Backward, Dim


@dataclass(frozen=True)
class Window:
    """One entry of each list is for one spatial axis.

    Attributes:
        kernel: How many elements a window takes.
        strides: How far the next window is.
        dilations: How far the next element of a window is.
        begin: Padding in front of the input.
        end: Padding behind it.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]

    @property
    def axes(self) -> list[int]:
        """The spatial axes of the input."""
        return list(range(2, 2 + len(self.kernel)))

    @property
    def pads(self) -> list[int]:
        """The padding as an attribute of a node."""
        return [*self.begin, *self.end]

    @property
    def is_pointwise(self) -> bool:
        """Whether a window is one element and none lies in the padding."""
        return all(size == 1 for size in self.kernel) and not any(self.pads)

    @property
    def is_dense(self) -> bool:
        """Whether each place has a window: all strides are 1."""
        return all(stride == 1 for stride in self.strides)

    @property
    def reach(self) -> list[int]:
        """How far the last element of a window is from its first."""
        return [d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True)]

    @property
    def overlaps(self) -> bool:
        """Whether two windows may have an element in common."""
        return any(reach >= s for reach, s in zip(self.reach, self.strides, strict=True))

    def attributes(self) -> dict[str, list[int]]:
        """The attributes of a convolution or pooling node."""
        return {
            "kernel_shape": self.kernel,
            "strides": self.strides,
            "dilations": self.dilations,
            "pads": self.pads,
        }

    def rest(self, sizes: Sequence[int], counts: Sequence[int]) -> list[int]:
        """How many elements, with the padding, lie behind the last of ``counts`` windows.

        Less than 0 where it ends behind the padding, as with ``ceil_mode``.
        """
        return [
            size + begin + end - stride * (count - 1) - reach - 1
            for size, count, begin, end, stride, reach in zip(
                sizes, counts, self.begin, self.end, self.strides, self.reach, strict=True
            )
        ]


def known(sizes: Sequence[object]) -> list[int] | None:
    """The sizes, if all are known before the graph runs."""
    numbers = [size for size in sizes if isinstance(size, int)]
    return numbers if len(numbers) == len(sizes) else None


def window_of(b: Backward, kernel: Sequence[int], sizes: Sequence[Dim]) -> Window:
    """The windows of a convolution or pooling node.

    Args:
        b: The node.
        kernel: How many elements a window takes along each spatial axis.
        sizes: Those of the axes over which the windows slide.

    Raises:
        ValueError: The padding depends on a size that is not known.
    """
    dilations = [
        dilation if width > 1 else 1
        for dilation, width in zip(along(b.node, "dilations", kernel), kernel, strict=True)
    ]
    pads = padding(b.node, kernel, sizes)
    if pads is None:
        raise b.error(
            "its gradient needs the padding that auto_pad stands for, which depends on a "
            "size that is not known; export the model with explicit pads or static sizes"
        )
    return Window(list(kernel), along(b.node, "strides", kernel), dilations, *pads)


def padding(
    node: ir.Node, kernel: Sequence[int], sizes: Sequence[object]
) -> tuple[list[int], list[int]] | None:
    """The padding in front of the input of a convolution or pooling node, and behind it.

    With ``auto_pad`` there are as many windows as input elements / stride.

    Args:
        node: The node.
        kernel: How many elements a window takes along each spatial axis.
        sizes: Those of the axes over which the windows slide; what is no int is not known.

    Returns:
        Both; None if they depend on a size that is not known.
    """
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        pads = [] if mode == "VALID" else list(node.attributes.get_ints("pads", ()))
        pads = pads or [0] * (2 * len(kernel))
        return pads[: len(kernel)], pads[len(kernel) :]
    smaller, larger = [], []
    strides, dilations = (along(node, name, kernel) for name in ("strides", "dilations"))
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = dilation * (width - 1)
        if stride > 1:
            if not isinstance(size, int):
                return None
            total = max((-(-size // stride) - 1) * stride + total + 1 - size, 0)
        smaller.append(total // 2)
        larger.append(total - total // 2)
    return (smaller, larger) if mode == "SAME_UPPER" else (larger, smaller)


def along(node: ir.Node, name: str, kernel: Sequence[int]) -> list[int]:
    """An attribute with a number for each spatial axis, by default 1."""
    return list(node.attributes.get_ints(name, [1] * len(kernel)))


def from_windows(
    b: Backward, dy: ir.Value, weight: Operand, window: Window, group: int = 1
) -> ir.Value:
    """Each element of ``dy`` times the weight, added where its window lies in the first input.

    Args:
        b: The node.
        dy: Dimensions: batch, channels, and the windows of the first output.
        weight: That of a ConvTranspose.
        window: The windows that slide over the first input.
        group: The number of groups of channels.
    """
    op = b.op
    sizes, counts = known(b.shape(b.x)[2:]), known(b.shape(b.y)[2:])
    attributes = window.attributes()
    if sizes is not None and counts is not None:
        rests = window.rest(sizes, counts)
        end = [pad + max(-rest, 0) for pad, rest in zip(window.end, rests, strict=True)]
        attributes["pads"] = [*window.begin, *end]
        padding = [max(rest, 0) for rest in rests]
    else:  # as much as there can be
        padding = [stride - 1 for stride in window.strides]
    attributes["output_padding"] = padding
    if len(window.kernel) == 1 and b.provider == "CPUExecutionProvider":
        # There, a transposed convolution in 2-D is several times faster than one in 1-D.
        neutral = {"pads": [0], "output_padding": [0]}
        attributes = {name: [*neutral.get(name, [1]), *v] for name, v in attributes.items()}
        attributes["pads"] = [0, window.begin[0], 0, attributes["pads"][-1]]
        wide = op.ConvTranspose(
            op.Unsqueeze(dy, [2]), op.Unsqueeze(weight, [2]), group=group, **attributes
        )
        gradient = op.Squeeze(wide, [2])
    else:
        gradient = op.ConvTranspose(dy, weight, group=group, **attributes)
    if (sizes is not None and counts is not None) or not any(padding):
        return gradient
    return op.Slice(gradient, [0] * len(padding), op.Shape(b.x, start=2), window.axes)
