"""Names for the nodes of each stage: of the forward node that they belong to, or of the bucket."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx_ir as ir

from graphopt.carried import NEXT
from graphopt.graphs import operands
from graphopt.stage import BACKWARD_PREFIX, UPDATE_PREFIX, Stage
from graphopt.states import is_called_as_one

_GRAD_OF_NODE = "_Grad/"  # in the names that ONNX Runtime gives the nodes of a gradient
_SEVERAL = ""  # buckets
_NUMBER = re.compile(r"\d+")


def layer_names(
    nodes: Sequence[ir.Node], stages: Sequence[Stage], parameters: Collection[str]
) -> list[str]:
    """The name of the layer of each node."""
    names: dict[int, str] = {}
    of_forward = _Forward()
    for at, (node, stage) in enumerate(zip(nodes, stages, strict=True)):
        if stage in ("forward", "loss"):
            names[at] = of_forward.add(at, node, parameters)
    made: dict[ir.Value, str] = {}
    for at, (node, stage) in enumerate(zip(nodes, stages, strict=True)):
        if stage == "backward":
            names[at] = of_forward.of_gradient(node, made) or name_of(node)
            made |= dict.fromkeys(node.outputs, names[at])
    names |= _of_update(nodes, stages)
    return [names[at] for at in range(len(nodes))]


class _Forward:
    """The layers of the forward pass and the loss, by what the backward pass may know of them."""

    def __init__(self) -> None:
        self._by_node: dict[str, str] = {}
        self._by_parameter: dict[str, str] = {}
        self._producers: dict[ir.Value, tuple[str, str]] = {}
        self._readers: dict[ir.Value, list[tuple[str, str]]] = {}

    def add(self, at: int, node: ir.Node, parameters: Collection[str]) -> str:
        """The layer of a forward node, which is the node at this index."""
        name = _layer_of(node, at)
        self._by_node.setdefault(name_of(node), name)
        for value in operands(node):
            if value.name in parameters:
                self._by_parameter.setdefault(str(value.name), name)
            self._readers.setdefault(value, []).append((node.op_type, name))
        self._producers |= dict.fromkeys(node.outputs, (node.op_type, name))
        return name

    def of_gradient(self, node: ir.Node, made: Mapping[ir.Value, str]) -> str | None:
        """The layer whose gradient a node of the backward pass computes.

        Args:
            node: The node.
            made: The layers of what the backward pass has computed so far.
        """
        forward = _forward_node(node.name or "")
        if forward is not None:
            scope = forward.rpartition("/")[0]
            known = self._by_node.get(forward) or self._by_node.get(scope)
            if known is not None or str(node.name).startswith(BACKWARD_PREFIX):
                return known or _scope(forward)
        read = list(operands(node))
        for value in read:
            if value.name in self._by_parameter:
                return self._by_parameter[value.name]
        return self._of_values(node, read) or next(
            (made[value] for value in read if value in made), None
        )

    def _of_values(self, node: ir.Node, read: Sequence[ir.Value]) -> str | None:
        """By the values of the forward pass that a node of the backward pass reads."""
        around = [
            neighbour
            for value in read
            for neighbour in (
                *self._readers.get(value, ())[:_MOST_READERS],
                *filter(None, [self._producers.get(value)]),
            )
        ]
        same = (name for op_type, name in around if node.op_type == f"{op_type}Grad")
        return next(same, None) or next((name for _, name in around), None)


_MOST_READERS = 8  # of a value that are looked at


def _forward_node(name: str) -> str | None:
    """The forward node that the name of a node of the backward pass says."""
    if name.startswith(BACKWARD_PREFIX):
        return name.removeprefix(BACKWARD_PREFIX).rpartition("/")[0] or None
    forward, found, _ = name.rpartition(_GRAD_OF_NODE)
    return forward if found else None


def name_of(node: ir.Node) -> str:
    """Its name, or that of its first result that has one."""
    return node.name or next((value.name for value in node.outputs if value.name), "")


def _layer_of(node: ir.Node, at: int) -> str:
    """The layer of a forward node."""
    name = name_of(node)
    if not name or _NUMBER.fullmatch(name):
        return f"{node.op_type}_{at}"
    if name.startswith(UPDATE_PREFIX):  # what takes the parameters of a bucket apart
        return _scope(name.removeprefix(UPDATE_PREFIX))
    return _scope(name)


def _scope(name: str) -> str:
    """What is before the last part of a name; a number after a dot is no part."""
    scope, _, last = name.rpartition("/")
    if scope:
        return scope
    scope, _, number = last.rpartition(".")
    return scope if scope and not number.isdigit() else name


def _of_update(nodes: Sequence[ir.Node], stages: Sequence[Stage]) -> Iterator[tuple[int, str]]:
    """The buckets of the nodes of the update, by their names or by what they are carried to."""
    wanted: dict[ir.Value, str] = {}
    for at in range(len(nodes) - 1, -1, -1):
        if stages[at] != "update":
            continue
        node = nodes[at]
        own = node.name or ""
        scope = own.rpartition("/")[0]
        name = scope.removeprefix(UPDATE_PREFIX)
        if not own.startswith(UPDATE_PREFIX) or not scope:
            name = _carried_to(node, wanted)
        elif scope + "/" == UPDATE_PREFIX:
            name = "update"
        for value in operands(node):
            wanted[value] = name if wanted.get(value, name) == name else _SEVERAL
        yield at, name or "update"


def _carried_to(node: ir.Node, wanted: Mapping[ir.Value, str]) -> str:
    """The one bucket for which a node without a name works."""
    names = [str(value.name) for value in node.outputs]
    new = {name.removesuffix(NEXT) for name in names if name.endswith(NEXT)}
    found = {name.partition(".")[2] if is_called_as_one(name) else name for name in new}
    found = found or {wanted[value] for value in node.outputs if value in wanted}
    return found.pop() if len(found) == 1 else _SEVERAL
