"""Fourier transforms, and what is computed of matrices."""

from graphopt.shapes.node import Node
from graphopt.shapes.sizes import Dim, axis_of
from graphopt.shapes.values import TensorInfo, tensor


def axis(node: Node) -> int | None:
    """The axis of a DFT: an attribute up to opset 19, then an input; None where it is not known."""
    rank = len(node.shape())
    if node.has(2):
        found = node.integers(2)
        return axis_of(found[0], rank) if found else None
    if "axis" in node.attributes:
        return axis_of(node.attributes.integer("axis"), rank)
    return 1 if rank == 3 else None  # the default is 1 in one form, and -2 in the other


def length(node: Node) -> Dim:
    """The length of the signal of a DFT."""
    if node.has(1):
        given = node.sizes(1)
        return given[0] if given else None
    at = axis(node)
    size = None if at is None else node.shape()[at]
    if node.attributes.integer("inverse") and node.attributes.integer("onesided"):
        return 2 * (size - 1) if isinstance(size, int) else None
    return size


def dft(node: Node) -> list[TensorInfo]:
    """Complex numbers on the last axis, or real ones; one side of the frequencies, or all."""
    sizes: list[Dim] = list(node.shape())
    at, inverse = axis(node), node.attributes.integer("inverse")
    onesided = node.attributes.integer("onesided")
    count = length(node)
    if onesided and not inverse:
        count = _bins(count)
    sizes[-1] = 1 if onesided and inverse else 2
    if at is None:
        sizes[:-1] = [None] * (len(sizes) - 1)
    else:
        sizes[at] = count
    return [tensor(node.input(0).dtype, sizes)]


def _bins(length: Dim) -> Dim:
    return length // 2 + 1 if isinstance(length, int) else None


def frame_length(node: Node) -> Dim:
    """The length of the frames of an STFT."""
    if node.has(3):
        given = node.sizes(3)
        return given[0] if given else None
    return node.shape(2)[0] if node.has(2) else node.shape()[1]


def stft(node: Node) -> list[TensorInfo]:
    """For each frame, one side of the frequencies, or all, as complex numbers."""
    batch, size, _ = node.shape()
    width, step = frame_length(node), (node.sizes(1) or (None,))[0]
    frames: Dim = None
    if isinstance(size, int) and isinstance(width, int) and isinstance(step, int):
        frames = (size - width) // step + 1
    bins = _bins(width) if node.attributes.integer("onesided", 1) else width
    return [tensor(node.input(0).dtype, (batch, frames, bins, 2))]


def determinant(node: Node) -> list[TensorInfo]:
    """Without the two axes of the matrices."""
    return [tensor(node.input(0).dtype, node.shape()[:-2])]
