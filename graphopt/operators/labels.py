"""Class labels: ONNX Runtime reads past the logits for a class that does not exist.

So the graph checks them itself, before anything is written, in every runtime whose Gather checks
its indices; and `Session` does first, to say which label it was.
"""

from dataclasses import dataclass

import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.operators.record import Moves, of

_KEY = "graphopt.class_labels"


@dataclass(frozen=True)
class ClassLabels:
    """A graph input that holds class indices.

    Attributes:
        name: The input.
        classes: Labels are 0 to ``classes - 1``.
        ignored: A label outside that range that is allowed, if any.
    """

    name: str
    classes: int
    ignored: int | None = None


def checked_labels(
    op: GraphBuilder, logits: ir.Value, labels: ir.Value, ignored: int | None = None
) -> ir.Value:
    """The same labels; computing them fails for a label that is no class.

    Args:
        op: Appends the nodes.
        logits: The classes are on axis 1.
        labels: int64 or int32.
        ignored: A label that is allowed though it is no class.
    """
    _remember(op.graph, logits, labels, ignored)
    known = logits.shape[1] if logits.shape is not None and len(logits.shape) > 1 else None
    classes = (
        op.constant(known) if isinstance(known, int) else op.Gather(op.Shape(logits), 1, axis=0)
    )
    indices = op.Cast(labels, to=ir.DataType.INT64)
    # A negative index would count from the end, so it is made one past the end.
    checked = op.Where(op.Less(indices, 0), classes, indices)
    if ignored is not None:
        is_ignored = op.Equal(indices, ignored)
        checked = op.Where(is_ignored, op.constant(0), checked)
    checked = op.Gather(op.Range(op.constant(0), classes, op.constant(1)), checked, axis=0)
    if ignored is not None:
        checked = op.Where(is_ignored, indices, checked)
    return checked


def remembered(graph: ir.Graph) -> list[ClassLabels]:
    """The inputs of a graph for which `checked_labels` was called, where the range is known."""
    found: list[ClassLabels] = graph.meta.get(_KEY, [])
    return found


def _remember(graph: ir.Graph, logits: ir.Value, labels: ir.Value, ignored: int | None) -> None:
    classes = logits.shape[1] if logits.shape is not None and len(logits.shape) > 1 else None
    producer = labels.producer()
    while producer is not None and of(producer).moves <= Moves.PRECISION:
        source = producer.inputs[0]
        assert source is not None
        labels, producer = source, source.producer()
    if isinstance(classes, int) and labels.is_graph_input():
        entry = ClassLabels(str(labels.name), classes, ignored)
        graph.meta[_KEY] = [*remembered(graph), entry]
