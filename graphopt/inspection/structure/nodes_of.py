"""The nodes that update a bucket, as text."""

from collections.abc import Sequence

import onnx

from graphopt.inspection.reading.dataflow import Operation, Value
from graphopt.inspection.reading.update import Update
from graphopt.operators import Moves, of

_MOST_NODES = 60
_MOST_CHARACTERS = 400


def nodes_of(model: onnx.ModelProto, new: Sequence[Value], update: Update) -> tuple[str, ...]:
    """The nodes of the graph between the gradient and the new values, in their order.

    What computes the learning rate is left out, and what makes the update wait.

    Args:
        model: The model.
        new: The new values of parameters and states.
        update: How they are computed.
    """
    ends = {id(value) for value in (update.value("gradient"), update.value("lr")) if value}
    found: set[int] = set()
    seen: set[int] = set()
    waiting = list(new)
    while waiting and len(found) <= _MOST_NODES:
        value = waiting.pop()
        operation = value.operation
        if operation is None or id(value) in ends or id(operation) in seen:
            continue
        seen.add(id(operation))
        found.add(operation.node)
        waiting += [operand for operand in _data(operation) if operand is not None]
    nodes = [text(model.graph.node[index]) for index in sorted(found)]
    return tuple(nodes[:_MOST_NODES])


def _data(operation: Operation) -> Sequence[Value | None]:
    """The operands that are no shape."""
    return operation.inputs[: 1 if of(operation.op_type).moves is Moves.SHAPE else None]


def text(node: onnx.NodeProto, *, short: bool = False) -> str:
    """A node as ONNX text, cut where it is too long; a short one is without its attributes.

    Example:
        >>> text(onnx.helper.make_node("Concat", ["a", "b"], ["c"], axis=0))
        'c = Concat <axis = 0> (a, b)'
    """
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if not short:
        attributes = ", ".join(f"{a.name} = {_attribute(a)}" for a in node.attribute)
        operator += f" <{attributes}> " if attributes else " "
    line = f"{_names(node.output)} = {operator}({_names(node.input)})"
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]} ..."


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:32])
    return shown if len(names) <= 32 else f"{shown}, ..."


def _attribute(attribute: onnx.AttributeProto) -> str:
    kinds = onnx.AttributeProto
    if attribute.type == kinds.FLOAT:
        return f"{attribute.f:g}"
    if attribute.type == kinds.INT:
        return str(attribute.i)
    if attribute.type == kinds.STRING:
        return repr(attribute.s[:60].decode("utf-8", "replace"))
    if attribute.type == kinds.INTS:
        return str(list(attribute.ints[:16]))
    if attribute.type == kinds.FLOATS:
        return str([float(f"{value:g}") for value in attribute.floats[:16]])
    if attribute.type == kinds.TENSOR:
        return f"tensor{list(attribute.t.dims)}"
    return "{...}" if attribute.type in (kinds.GRAPH, kinds.GRAPHS) else "..."
