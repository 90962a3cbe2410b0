"""Normalizations, recurrent cells, losses and what ONNX Runtime's training adds."""

from graphopt.shapes.node import Node
from graphopt.shapes.values import BOOL, FLOAT, TensorInfo, tensor


def batch_normalization(node: Node) -> list[TensorInfo]:
    """Of the shape of the first input; statistics of its channels."""
    first = node.input(0)
    channels = first.shape[1] if first.shape is not None else None
    dtype = node.input(3).dtype or first.dtype
    return [tensor(first.dtype, first.shape)] + [tensor(dtype, (channels,))] * (node.outputs - 1)


def layer_normalization(node: Node) -> list[TensorInfo]:
    """Of the shape of the first input; statistics of its last axes."""
    shape = node.shape()
    axis = node.axis(-1, len(shape))
    kept = [*shape[:axis], *(1 for _ in shape[axis:])]
    statistic = tensor(node.attributes.dtype("stash_type", FLOAT), kept)
    return [tensor(node.input(0).dtype, shape)] + [statistic] * (node.outputs - 1)


def recurrent(node: Node) -> list[TensorInfo]:
    """The states at all steps, and the last ones."""
    dtype = node.input(0).dtype
    steps, batch, _ = node.shape()
    hidden = node.attributes.integer("hidden_size") or node.shape(2)[2]
    directions = 2 if node.attributes.text("direction") == "bidirectional" else 1
    if node.attributes.integer("layout"):
        steps, batch = batch, steps
        every, last = [batch, steps, directions, hidden], [batch, directions, hidden]
    else:
        every, last = [steps, directions, batch, hidden], [directions, batch, hidden]
    return [tensor(dtype, every)] + [tensor(dtype, last)] * (node.outputs - 1)


def cross_entropy(node: Node) -> list[TensorInfo]:
    """The loss, and logarithms in the shape of the scores."""
    scores, labels = node.input(0), node.input(1)
    mean = node.attributes.text("reduction", "mean") != "none"
    return [tensor(scores.dtype, () if mean else labels.shape), tensor(scores.dtype, scores.shape)]


def accumulate(node: Node) -> list[TensorInfo]:
    """Whether it was done, and the sum."""
    buffer = node.input(0)
    return [tensor(BOOL, (1,)), tensor(buffer.dtype, buffer.shape)]
