"""Class labels: ONNX Runtime reads past the logits for a class that does not exist.

So the graph checks them itself, before anything is written, in every runtime whose Gather checks
its indices; and `Session` does first, to say which label it was.
"""

from dataclasses import dataclass

import numpy as np
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


def with_shape(
    op: GraphBuilder, labels: ir.Value, output: ir.Value, without: int | None = None
) -> ir.Value:
    """The same labels; computing them fails where they have not the shape of an output.

    Where only a run tells a size, labels of another one could be broadcast to the output, and what
    is trained would not be what was meant. Where all sizes are numbers, or those of an input of
    the graph by name, what is fed is compared before, and nothing is added.

    Two reshapes compare: the first to the larger sizes, which has as many elements only where none
    of the output's is larger, the second to the smaller ones.

    Args:
        op: Appends the nodes.
        labels: Of the same rank.
        output: The output, whose rank is known.
        without: An axis of the output that the labels do not have.
    """
    assert output.shape is not None
    fed = {
        size.value
        for value in op.graph.inputs
        if value is not labels and value.shape is not None
        for size in value.shape
        if not isinstance(size, int)
    }
    axes = [axis for axis in range(len(output.shape)) if axis != without]
    sizes = [output.shape[axis] for axis in axes]
    if all(isinstance(s, int) or (s.value is not None and s.value in fed) for s in sizes):
        return labels
    with op.named("labels/shape"):
        of_labels, of_output = op.Shape(labels), op.Shape(output)
        if without is not None:
            of_output = op.Gather(of_output, np.array(axes), axis=0)
        checked = op.Reshape(labels, op.Max(of_labels, of_output))
        checked = op.Reshape(checked, op.Min(of_labels, of_output))
    checked.shape = labels.shape
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
