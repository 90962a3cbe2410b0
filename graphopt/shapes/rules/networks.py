"""Normalizations, recurrent cells, losses and what ONNX Runtime's training adds."""

from graphopt.shapes.values import (
    BOOL,
    FLOAT,
    Node,
    Rule,
    TensorInfo,
    tensor,
)

RECURRENT = {"RNN": 1, "GRU": 3, "LSTM": 4}
"""How many gates there are."""


def _batch_normalization(node: Node) -> list[TensorInfo]:
    first = node.input(0)
    channels = first.shape[1] if first.shape is not None else None
    dtype = node.input(3).dtype or first.dtype
    return [tensor(first.dtype, first.shape)] + [tensor(dtype, (channels,))] * (node.outputs - 1)


def _layer_normalization(node: Node) -> list[TensorInfo]:
    shape = node.shape()
    axis = node.axis(-1, len(shape))
    kept = [*shape[:axis], *(1 for _ in shape[axis:])]
    statistic = tensor(node.attributes.dtype("stash_type", FLOAT), kept)
    return [tensor(node.input(0).dtype, shape)] + [statistic] * (node.outputs - 1)


def _recurrent(node: Node) -> list[TensorInfo]:
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


def _cross_entropy(node: Node) -> list[TensorInfo]:
    scores, labels = node.input(0), node.input(1)
    mean = node.attributes.text("reduction", "mean") != "none"
    return [tensor(scores.dtype, () if mean else labels.shape), tensor(scores.dtype, scores.shape)]


def _accumulate(node: Node) -> list[TensorInfo]:
    buffer = node.input(0)
    return [tensor(BOOL, (1,)), tensor(buffer.dtype, buffer.shape)]


def _like(*indices: int) -> Rule:
    """Each output has the shape of one input."""

    def rule(node: Node) -> list[TensorInfo]:
        given = [node.input(index) for index in indices[: node.outputs]]
        return [tensor(info.dtype, info.shape) for info in given]

    return rule


RULES: dict[str, Rule] = {
    **dict.fromkeys(("BatchNormalization", "com.microsoft::BatchNormInternal"),
                    _batch_normalization),
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization"), _layer_normalization),
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(
        (
            "NegativeLogLikelihoodLoss",
            "SoftmaxCrossEntropyLoss",
            "com.microsoft::SoftmaxCrossEntropyLossInternal",
        ),
        _cross_entropy,
    ),
    "com.microsoft::BatchNormalizationGrad": _like(1, 2, 2),
    "com.microsoft::DivGrad": _like(1, 2),
    "com.microsoft::InPlaceAccumulatorV2": _accumulate,
    "com.microsoft::LayerNormalizationGrad": _like(1, 2, 2),
    "com.microsoft::SoftmaxCrossEntropyLossGrad": _like(1),
    "com.microsoft::SoftmaxCrossEntropyLossInternalGrad": _like(1),
}  # fmt: skip
