"""What a Pad that puts zeros along one axis does."""

from typing import NamedTuple

import numpy as np
import onnx_ir as ir


class Padded(NamedTuple):
    """A value with zeros before and after it.

    Attributes:
        value: What is between the zeros.
        axis: Along which they are.
        before: How many.
        after: How many.
    """

    value: ir.Value
    axis: int
    before: int
    after: int


def padded(node: ir.Node) -> Padded | None:
    """What a node does, if it puts a known number of zeros along one axis and takes none away."""
    if node.op_type != "Pad" or node.domain or "mode" in node.attributes:
        return None
    value, given, *others = node.inputs
    pads = None if given is None else ir.convenience.get_const_tensor(given)
    if value is None or pads is None or any(others):
        return None
    widths = pads.numpy().reshape(2, -1)
    axes = np.flatnonzero(widths.any(axis=0))
    if len(axes) != 1 or (widths < 0).any():
        return None
    before, after = (int(width) for width in widths[:, axes[0]])
    return Padded(value, int(axes[0]), before, after)
