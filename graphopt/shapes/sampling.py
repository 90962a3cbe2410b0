"""Images read at places that another tensor says."""

from graphopt.shapes.node import Node
from graphopt.shapes.sizes import needed
from graphopt.shapes.values import TensorInfo, tensor


def grid_sample(node: Node) -> list[TensorInfo]:
    """An element for each place and channel."""
    return [tensor(node.input(0).dtype, [*node.shape()[:2], *node.shape(1)[1:-1]])]


def affine_grid(node: Node) -> list[TensorInfo]:
    """A place for each element of images whose shape the second input is."""
    sizes = node.dims(1)
    if sizes is None:
        raise IndexError("the rank is not known")
    images = node.shape()[0] if sizes[0] is None else sizes[0]
    return [tensor(node.input(0).dtype, [images, *sizes[2:], len(sizes) - 2])]


def deform_conv(node: Node) -> list[TensorInfo]:
    """A channel for each row of the weight, an element for each place that has offsets."""
    shape = [node.shape()[0], node.shape(1)[0], *node.shape(2)[2:]]
    return [tensor(node.input(0).dtype, shape)]


def roi_align(node: Node) -> list[TensorInfo]:
    """An image for each region, the first axis of the second input."""
    sizes = [node.attributes.integer(name, 1) for name in ("output_height", "output_width")]
    return [tensor(node.input(0).dtype, [node.shape(1)[0], node.shape()[1], *sizes])]


def max_roi_pool(node: Node) -> list[TensorInfo]:
    """An image for each region, the first axis of the second input."""
    sizes = needed(node.attributes.integers("pooled_shape"))
    return [tensor(node.input(0).dtype, [node.shape(1)[0], node.shape()[1], *sizes])]
