"""The nodes that update a bucket, as text."""

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.update import Update
from graphopt.operators import Moves, of

_MOST_NODES = 60
_MOST_CHARACTERS = 400


def nodes_of(nodes: Sequence[ir.Node], new: Sequence[Value], update: Update) -> tuple[str, ...]:
    """The nodes of the graph between the gradient and the new values, in their order.

    What computes the learning rate is left out, and what makes the update wait.

    Args:
        nodes: All nodes of the graph.
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
        data = 1 if of(operation.op_type).moves is Moves.SHAPE else None  # the others are a shape
        waiting += filter(None, operation.inputs[:data])
    return tuple(text(nodes[index]) for index in sorted(found)[:_MOST_NODES])


def text(node: ir.Node, *, short: bool = False) -> str:
    """A node as ONNX text, cut where it is too long; a short one is without its attributes.

    Example:
        >>> text(ir.node("Concat", [ir.val("a"), ir.val("b")], {"axis": 0}, outputs=[ir.val("c")]))
        'c = Concat <axis = 0> (a, b)'
    """
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if not short:
        attributes = attributes_text(node)
        operator += f" <{attributes}> " if attributes else " "
    line = f"{_names(node.outputs)} = {operator}({_names(node.inputs)})"
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]} ..."


def attributes_text(node: ir.Node) -> str:
    """The attributes of a node as ONNX text; long values are cut."""
    return ", ".join(f"{n} = {_attribute(a)}" for n, a in node.attributes.items())


def _names(values: Sequence[ir.Value | None]) -> str:
    shown = ", ".join(str(value.name) if value is not None else "" for value in values[:32])
    return shown if len(values) <= 32 else f"{shown}, ..."


def _attribute(attribute: ir.Attr) -> str:
    kinds, value = ir.AttributeType, attribute.value
    if attribute.type == kinds.FLOAT:
        return f"{value:g}"
    if attribute.type == kinds.INT:
        return str(value)
    if attribute.type == kinds.STRING:
        return repr(value[:60])
    if attribute.type == kinds.INTS:
        return str(list(value[:16]))
    if attribute.type == kinds.FLOATS:
        return str([float(f"{number:g}") for number in value[:16]])
    if attribute.type == kinds.TENSOR:
        return f"tensor{list(value.shape.numpy())}"
    return "{...}" if attribute.type in (kinds.GRAPH, kinds.GRAPHS) else "..."
