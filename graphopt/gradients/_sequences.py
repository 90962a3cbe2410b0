"""Sequences of tensors, written as the tensors that they are, where it is known which."""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder, Operand
from graphopt.gradients._constants import constant_of
from graphopt.graphs import subgraphs
from graphopt.operators.rewriting import take_place

_Tensors = list[ir.Value]


def write_tensors(op: GraphBuilder, wanted: Collection[ir.Node], trained: Collection[str]) -> bool:
    """Replace what reads sequences by nodes on their tensors.

    Args:
        op: A builder of the graph, in which constants are known as far as they can be.
        wanted: The nodes that are looked at.
        trained: Initializers that are no constants.

    Returns:
        Whether there were any.
    """
    return _Sequences(op, wanted, trained).write(op.graph)


class _Sequences:
    """The sequences of a graph whose tensors are known."""

    def __init__(
        self, op: GraphBuilder, wanted: Collection[ir.Node], trained: Collection[str]
    ) -> None:
        self.op, self.wanted, self.trained = op, wanted, trained
        self._tensors: dict[ir.Value, _Tensors | None] = {}

    def write(self, graph: ir.Graph) -> bool:
        """Replace what reads sequences in a graph and in its nodes; whether there was something."""
        changed = False
        for node in list(graph):
            for inner in subgraphs(node):
                changed |= self.write(inner)
            if node.domain or node not in self.wanted:
                continue
            with self.op.inside(graph), self.op.named(node.name or str(node.outputs[0].name)):
                value = self._value(node)
                if value is not None:
                    self._replace(node, value)
                    changed = True
        return changed

    def _value(self, node: ir.Node) -> ir.Value | None:
        """What a node reads from a sequence; None where it is not known, or it is another node."""
        op, sequence = self.op, node.inputs[0] if node.inputs else None
        if node.op_type not in ("SequenceAt", "ConcatFromSequence") or sequence is None:
            return None
        if node.op_type == "ConcatFromSequence" and (whole := self._joined_again(node)):
            return op.Identity(whole)
        tensors = self._of(sequence)
        if not tensors:
            return None
        if node.op_type == "SequenceAt":
            position = constant_of(node.inputs[1], self.trained)
            if position is not None:
                at = int(position.item())
                return op.Identity(tensors[at]) if -len(tensors) <= at < len(tensors) else None
            if len({str(tensor.shape) for tensor in tensors if _is_static(tensor)}) != 1 or not all(
                map(_is_static, tensors)
            ):
                return None
            stacked = op.Concat(*(op.Unsqueeze(tensor, [0]) for tensor in tensors), axis=0)
            return op.Gather(stacked, node.inputs[1], axis=0)
        axis = node.attributes.get_int("axis", 0)
        if node.attributes.get_int("new_axis", 0):
            tensors = [op.Unsqueeze(tensor, [axis]) for tensor in tensors]
        return op.Concat(*tensors, axis=axis)

    def _joined_again(self, node: ir.Node) -> ir.Value | None:
        """What was split into a sequence before, in the same direction."""
        sequence = node.inputs[0]
        source = None if sequence is None else sequence.producer()
        if source is None or source.op_type != "SplitToSequence":
            return None
        whole, axes = source.inputs[0], []
        for one in (source, node):
            axis = one.attributes.get_int("axis", 0)
            if axis < 0 and (whole is None or whole.shape is None):
                return None
            axes.append(axis if axis >= 0 else axis + len(whole.shape))  # type: ignore[union-attr, arg-type]
        keeps = bool(source.attributes.get_int("keepdims", 1)) or len(source.inputs) > 1
        is_same = axes[0] == axes[1] and keeps != bool(node.attributes.get_int("new_axis", 0))
        return whole if is_same else None

    def _of(self, sequence: ir.Value | None) -> _Tensors | None:
        """The tensors of a sequence; None where it is not known which."""
        if sequence is None:
            return None
        if sequence not in self._tensors:
            node = sequence.producer()
            self._tensors[sequence] = None if node is None or node.domain else self._made(node)
        return self._tensors[sequence]

    def _made(self, node: ir.Node) -> _Tensors | None:
        """The tensors of the sequence that a node gives."""
        inputs = node.inputs
        match node.op_type:
            case "SequenceEmpty":
                return []
            case "SequenceConstruct":
                return [value for value in inputs if value is not None]
            case "Identity":
                return self._of(inputs[0])
            case "SequenceInsert" | "SequenceErase":
                return self._edited(node)
            case "SplitToSequence":
                return self._split(node)
        return None

    def _edited(self, node: ir.Node) -> _Tensors | None:
        tensors = self._of(node.inputs[0])
        inserts = node.op_type == "SequenceInsert"
        at = 2 if inserts else 1
        if tensors is None:
            return None
        place = len(tensors) if inserts else len(tensors) - 1
        if len(node.inputs) > at and node.inputs[at] is not None:
            position = constant_of(node.inputs[at], self.trained)
            if position is None:
                return None
            place = int(position.item())
            place += len(tensors) if place < 0 else 0
        if not 0 <= place <= len(tensors) - (not inserts):
            return None
        kept = list(tensors)
        if inserts:
            assert node.inputs[1] is not None
            kept.insert(place, node.inputs[1])
        else:
            del kept[place]
        return kept

    def _split(self, node: ir.Node) -> _Tensors | None:
        op, x = self.op, node.inputs[0]
        if x is None or x.shape is None:
            return None
        axis = node.attributes.get_int("axis", 0)
        size = x.shape[axis]
        lengths = node.inputs[1] if len(node.inputs) > 1 else None
        graph = node.graph
        assert graph is not None
        with op.inside(graph), op.named(node.name or str(node.outputs[0].name)):
            sizes = self._sizes(size, lengths)
            if sizes is None:
                return None
            operand, count = sizes
            parts = list(op.node("Split", [x, operand], outputs=count, axis=axis))
            for part in parts:
                part.type = x.type
            if lengths is None and not node.attributes.get_int("keepdims", 1):
                parts = [op.Squeeze(part, [axis]) for part in parts]
        return parts

    def _sizes(
        self, size: int | ir.SymbolicDim, lengths: ir.Value | None
    ) -> tuple[Operand, int] | None:
        """How long the parts of an axis are, and how many there are."""
        if lengths is None:
            return (np.ones(size, np.int64), size) if isinstance(size, int) and size else None
        known = constant_of(lengths, self.trained)
        if known is None:
            count = None if lengths.shape is None or len(lengths.shape) != 1 else lengths.shape[0]
            if not isinstance(count, int) or not count:
                return None
            return self.op.Cast(lengths, to=ir.DataType.INT64), count
        if known.ndim:
            return known.astype(np.int64), known.size
        length = int(known.item())
        if not isinstance(size, int) or not size or length <= 0:
            return None
        parts = [min(length, size - start) for start in range(0, size, length)]
        return np.array(parts, np.int64), len(parts)

    def _replace(self, node: ir.Node, value: ir.Value) -> None:
        old = node.outputs[0]
        take_place(node, [value])
        for tensors in self._tensors.values():
            if tensors is not None:
                tensors[:] = [value if tensor is old else tensor for tensor in tensors]


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()
