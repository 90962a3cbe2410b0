"""Cross entropy with smoothed labels, and with probabilities as labels.

PyTorch's exporter translates that of class indices, and leaves the smoothing out.
"""

from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from graphopt.torch._nodes import call, replace

aten = torch.ops.aten
_NONE, _MEAN = 0, 1


def settle(program: ExportedProgram) -> None:
    """Write these out."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is not aten.cross_entropy_loss.default:
            continue
        given = cast(tuple[Any, ...], node.args)
        left_out: tuple[Any, ...] = (None, _MEAN, -100, 0.0)
        x, labels, weight, reduction, ignored, smoothing = given + left_out[len(given) - 2 :]
        with graph.inserting_before(node):
            op = _Ops(graph, node, x, weight, reduction)
            if labels.meta["val"].is_floating_point():
                replace(graph, node, op.of_probabilities(labels, smoothing))
            elif smoothing:
                replace(graph, node, op.smoothed(labels, ignored, smoothing))
    program.graph_module.recompile()


class _Ops:
    """The nodes that take the place of one."""

    def __init__(self, graph: Graph, node: Node, x: Node, weight: Any, reduction: int) -> None:
        self._graph, self._node, self._x, self._reduction = graph, node, x, reduction
        self._weight = weight
        value = x.meta["val"]
        self._axis = 1 if value.dim() > 1 else 0
        self._classes, self._rank = value.shape[self._axis], value.dim()

    def __call__(self, target: Any, *args: Any) -> Node:
        return call(self._graph, self._node, target, *args)

    def of_probabilities(self, labels: Node, smoothing: float) -> Node:
        """-Σ over the classes of label · weight · log softmax."""
        if smoothing:
            kept = self(aten.mul.Tensor, labels, 1 - smoothing)
            labels = self(aten.add.Tensor, kept, smoothing / self._classes)
        each = self._summed(self(aten.mul.Tensor, self._logarithms(), labels))
        if self._reduction == _NONE:
            return each
        return self(aten.mean.default if self._reduction == _MEAN else aten.sum.default, each)

    def smoothed(self, labels: Node, ignored: int, smoothing: float) -> Node:
        """(1 - smoothing) of the loss of the label, the rest of the mean over all classes."""
        own = self(
            aten.cross_entropy_loss.default, self._x, labels, self._weight, self._reduction, ignored
        )
        counts = self(aten.ne.Scalar, labels, ignored)
        zero = self(aten.mul.Tensor, self._summed(self._logarithms()), 0.0)
        others = self(aten.where.self, counts, self._summed(self._logarithms()), zero)
        if self._reduction != _NONE:
            others = self(aten.sum.default, others)
        if self._reduction == _MEAN:
            others = self(aten.div.Tensor, others, self._total(labels, counts))
        return self(
            aten.add.Tensor,
            self(aten.mul.Tensor, own, 1 - smoothing),
            self(aten.mul.Tensor, others, smoothing / self._classes),
        )

    def _logarithms(self) -> Node:
        """Log softmax, times the weight of the class."""
        result = self(aten.log_softmax.int, self._x, self._axis)
        if self._weight is None:
            return result
        shape = [-1 if axis == self._axis else 1 for axis in range(self._rank)]
        return self(aten.mul.Tensor, result, self(aten.reshape.default, self._weight, shape))

    def _summed(self, x: Node) -> Node:
        return self(aten.neg.default, self(aten.sum.dim_IntList, x, [self._axis]))

    def _total(self, labels: Node, counts: Node) -> Node:
        """The number of labels that count, or the sum of their weights."""
        dtype = self._x.meta["val"].dtype
        if self._weight is None:
            return self(aten.sum.default, self(aten.to.dtype, counts, dtype))
        first = self(aten.mul.Tensor, labels, 0)
        classes = self(aten.where.self, counts, labels, first)
        flat = self(aten.reshape.default, classes, [-1])
        weights = self(aten.index_select.default, self._weight, 0, flat)
        present = self(aten.reshape.default, self(aten.to.dtype, counts, dtype), [-1])
        return self(aten.sum.default, self(aten.mul.Tensor, weights, present))
