"""The part of a graph through which a gradient flows."""

from collections import defaultdict
from collections.abc import Iterable

import onnx_ir as ir

from graphopt.graphs import captured, operands, subgraphs
from graphopt.operators.record import carries_gradient, of

_MOST_NAMED = 20


class Path:
    """The part of a graph that lies between sources and what is computed from them.

    Attributes:
        graph: The graph that it is a part of.
        nodes: Its nodes, in the order of the graph.
        values: Its values: they depend on a source, and a target depends on them.
    """

    def __init__(
        self, graph: ir.Graph, sources: Iterable[ir.Value], targets: Iterable[ir.Value]
    ) -> None:
        """The part that lies between ``sources`` and ``targets``."""
        self.graph, self._sources = graph, list(sources)
        depends = depending(graph, self._sources)
        self.nodes: list[ir.Node] = []
        wanted = depends.intersection(targets)
        for node in reversed(graph):
            if wanted.isdisjoint(node.outputs):
                continue
            self.nodes.append(node)
            wanted.update(value for value in operands(node) if value in depends)
        self.nodes.reverse()
        self.values = wanted

    def check_rules(self) -> None:
        """Name all operators without a rule at once, and where they stand."""
        without: defaultdict[str, list[str]] = defaultdict(list)
        for node in self.nodes:
            if not callable(of(node).gradient):
                name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
                without[name].append(node.name or str(node.outputs[0].name))
        if not without:
            return
        listed = "; ".join(
            f"{op_type} ({', '.join(f'{name!r}' for name in names[:3])}"
            + (f" and {len(names) - 3} more)" if len(names) > 3 else ")")
            for op_type, names in sorted(without.items())
        )
        raise ValueError(
            f"these operators have no gradient: {listed}. Write them with operators that have one, "
            f"or leave the parameters before them out of the optimizer{self._before()}"
        )

    def _before(self) -> str:
        """The parameters that stand before operators without a rule; all others can be trained."""
        before: set[ir.Value] = set()
        for node in reversed(self.nodes):
            if not callable(of(node).gradient) or not before.isdisjoint(node.outputs):
                before.update(value for value in operands(node) if value in self.values)
        names = [str(v.name) for v in self._sources if v in before and v.is_initializer()]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        listed = ", ".join(f"'{name}'" for name in names[:_MOST_NAMED])
        return f": {listed}{more}" if names else ""


def depending(graph: ir.Graph, sources: Iterable[ir.Value]) -> set[ir.Value]:
    """The values of a graph through which a small change of a source goes on, with the sources."""
    depends = set(sources)
    for node in graph:
        follow(node, depends)
    return depends


def follow(node: ir.Node, depends: set[ir.Value]) -> None:
    """Add the outputs of a node through which a small change of one of these values goes on."""
    if carries_gradient(node) and not depends.isdisjoint(_elements(node)):
        depends.update(value for value in node.outputs if _is_differentiable(value))


def _elements(node: ir.Node) -> Iterable[ir.Value | None]:
    """What a node reads for more than its shape or its dtype."""
    count = of(node).elements
    return operands(node) if count is None else node.inputs[:count]


def nodes_between(
    graph: ir.Graph, sources: Iterable[ir.Value], targets: Iterable[ir.Value]
) -> set[ir.Node]:
    """The nodes on a path, and those inside them that may be on one; never too few.

    Args:
        graph: Sorted; shapes and dtypes need not be known.
        sources: What the path begins with.
        targets: What it ends with.
    """
    path = Path(graph, sources, targets)
    found = set(path.nodes)
    for node in path.nodes:
        for inner in subgraphs(node):
            begins = {*path.values, *inner.inputs} & {*inner.inputs, *captured(node)}
            found |= nodes_between(inner, begins, inner.outputs)
    return found


def _is_differentiable(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()
