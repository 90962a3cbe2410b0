"""Shapes and dtypes of the values of a model, as far as they follow from its inputs.

ONNX's own shape inference is not used: a model that was made for it keeps it busy, and takes
memory, for as long as its author likes. Here each node costs about the same, and what a
rule does not know is unknown.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest

import onnx_ir as ir

from graphopt.graphs import functions
from graphopt.operators import name_of, of
from graphopt.shapes.bodies import loop_outputs, scan_inputs, without_inner_symbols, without_numbers
from graphopt.shapes.node import Attributes, Node
from graphopt.shapes.sizes import Dim, axis_of
from graphopt.shapes.values import (
    BOOL,
    INT64,
    UNKNOWN,
    TensorInfo,
    declared,
    either,
    is_fixed,
    merged,
    of_tensor,
    symbol_of,
    tensor,
)

_DEEPEST = 24  # bodies within bodies
_BODIES = {"If", "Loop", "Scan"}
_MOST_NODES = 1_000_000  # that are looked at, those of a body once for each kind of call
# What rules and bodies may raise: the node makes no sense.
_SENSELESS = (ArithmeticError, IndexError, TypeError, ValueError)


class Scope:
    """What is known of the values that can be seen in one place.

    Attributes:
        outer: The scope around it; None in the graph itself and in a function.
        attributes: Those of the function that it is in.
        depth: How many bodies it is in.
    """

    def __init__(
        self,
        outer: "Scope | None" = None,
        attributes: Mapping[str, ir.Attr] | None = None,
        depth: int = 0,
    ) -> None:
        """A scope in which no value is known yet."""
        self.outer = outer
        self.attributes = attributes or {}
        self.depth = depth
        self._values: dict[ir.Value, TensorInfo] = {}

    def __iter__(self) -> Iterator[ir.Value]:
        """The values of this place of which something was said."""
        return iter(self._values)

    def of(self, value: ir.Value) -> TensorInfo:
        """What is known of a value."""
        found = self._values.get(value)
        if found is None:
            return UNKNOWN if self.outer is None else self.outer.of(value)
        return found

    def set(self, value: ir.Value, info: TensorInfo) -> None:
        """Say what is known of a value."""
        self._values[value] = info

    def node(self, node: ir.Node) -> Node:
        """A node of this place, with what is known of its inputs."""
        return Node(
            name_of(node),
            tuple(None if value is None else self.of(value) for value in node.inputs),
            len(node.outputs),
            Attributes(node, self.attributes),
        )


@dataclass(frozen=True)
class Body:
    """The nodes inside a node.

    Attributes:
        graph: The nodes and their inputs and outputs.
        scope: What is known of their values.
        times: How often they run: a number, the symbol of a size, or None.
        kind: "function", "loop", or "branch", of which one of several runs.
    """

    graph: ir.Graph | ir.Function
    scope: Scope
    times: Dim
    kind: str


class Shapes:
    """What is known of the values of a model.

    Attributes:
        model: The model.
        scope: The values of the graph itself.
    """

    def __init__(self, model: ir.Model, sizes: Mapping[str, int] | None = None) -> None:
        """Find out what is known.

        Args:
            model: Any model, which is left as it is.
            sizes: A size for each open dimension, by its name; without them, symbols stay.
        """
        self.model = model
        self.scope = Scope()
        self._sizes = sizes
        self._functions = functions(model)
        self._seen = 0
        self._calls: dict[object, Body] = {}
        self._bodies: dict[tuple[ir.Node, Scope], tuple[Body, ...]] = {}
        for value in model.graph.inputs:
            self.scope.set(value, self.says(value))
        self._follow(model.graph, self.scope)

    def says(self, value: ir.Value) -> TensorInfo:
        """What the declaration of a value says."""
        return declared(value, self._sizes)

    def settled(self, info: TensorInfo) -> TensorInfo:
        """What is said of a value of which this is known."""
        return info

    def otherwise(self, node: ir.Node, known: Node) -> Sequence[TensorInfo]:
        """What is known of the outputs of a node where there is no rule, or it does not help."""
        del node, known
        return ()

    def of(self, name: str) -> TensorInfo:
        """What is known of a value of the graph."""
        return self.scope.of(self._named_values[name]) if name in self._named_values else UNKNOWN

    @cached_property
    def _named_values(self) -> dict[str, ir.Value]:
        return {str(value.name): value for value in self.scope}

    def bodies(self, node: ir.Node, scope: Scope) -> tuple[Body, ...]:
        """The bodies of a node: of its function, loop or branches; none if it has none.

        Args:
            node: The node.
            scope: The scope in which it stands.
        """
        if not self._may_have_bodies(node):
            return ()
        key = (node, scope)
        if key not in self._bodies:
            self._bodies[key] = self._found_bodies(node, scope)
        return self._bodies[key]

    def _may_have_bodies(self, node: ir.Node) -> bool:
        return name_of(node) in _BODIES or self._function(node) is not None

    def _function(self, node: ir.Node) -> ir.Function | None:
        return self._functions.get((node.domain, node.op_type))

    def _follow(self, graph: ir.Graph | ir.Function, scope: Scope) -> None:
        """Find what is known of what the nodes of a graph compute, in order."""
        is_graph = isinstance(graph, ir.Graph)
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    scope.set(value, of_tensor(value.const_value))
        for node in graph:
            self._seen += 1
            found = self._outputs(node, scope)
            for value, info in zip_longest(node.outputs, found[: len(node.outputs)]):
                known = merged(info or UNKNOWN, self.says(value) if is_graph else None)
                if value.const_value is not None:  # somebody has calculated it
                    known = of_tensor(value.const_value)
                scope.set(value, self.settled(known))

    def _outputs(self, node: ir.Node, scope: Scope) -> Sequence[TensorInfo]:
        if self._seen > _MOST_NODES:
            return ()
        rule = of(node).shape
        try:
            if self._may_have_bodies(node):
                return self._through_bodies(node, scope)
            if rule is not None:
                return rule(scope.node(node))
        except _SENSELESS:
            pass
        return self.otherwise(node, scope.node(node))

    def _through_bodies(self, node: ir.Node, scope: Scope) -> Sequence[TensorInfo]:
        bodies = self.bodies(node, scope)
        if not bodies:
            return ()
        given = [[body.scope.of(value) for value in body.graph.outputs] for body in bodies]
        if bodies[0].kind == "function":
            return without_inner_symbols(given[0], scope.node(node).inputs)
        if bodies[0].kind == "branch":
            condition = scope.node(node).integers(0)
            if condition and len(given) == 2:  # only one of them runs
                return given[0 if condition[0] else 1]
            return [either(infos) for infos in zip(*given, strict=True)]
        return loop_outputs(scope.node(node), bodies[0].times, given[0])

    def _found_bodies(self, node: ir.Node, scope: Scope) -> tuple[Body, ...]:
        if scope.depth >= _DEEPEST or self._seen > _MOST_NODES:
            return ()
        function = self._function(node)
        if function is not None:
            return (self._call(function, scope.node(node), scope.depth + 1),)
        makers = {"If": self._branches, "Loop": self._loop, "Scan": self._scan}
        try:
            return makers[name_of(node)](scope.node(node), scope)
        except _SENSELESS:
            return ()

    def _call(self, function: ir.Function, node: Node, depth: int) -> Body:
        """The body of a function, for what is known of these inputs; once for each such call."""
        given = node.attributes.all()
        settings = frozenset((name, attribute.value) for name, attribute in given.items())
        key = (function.identifier(), node.inputs, settings, depth)
        if key not in self._calls:
            scope = Scope(attributes={**function.attributes, **given}, depth=depth)
            for value, info in zip(function.inputs, node.inputs, strict=False):
                scope.set(value, info or UNKNOWN)
            self._follow(function, scope)
            self._calls[key] = Body(function, scope, 1, "function")
        return self._calls[key]

    def _branches(self, node: Node, scope: Scope) -> tuple[Body, ...]:
        graphs = [node.attributes.graph(name) for name in ("then_branch", "else_branch")]
        return tuple(
            self._subgraph(graph, scope, (), 1, "branch") for graph in graphs if graph is not None
        )

    def _loop(self, node: Node, scope: Scope) -> tuple[Body, ...]:
        graph = node.attributes.graph("body")
        if graph is None:
            return ()
        most = node.integers(0)
        times = max(most[0], 0) if most else None
        counters = [tensor(INT64, ()), tensor(BOOL, (), [1])]  # it runs while this is true
        states = [without_numbers(info) for info in node.inputs[2:]]
        given = self._declared(graph, [*counters, *states])
        while True:
            body = self._subgraph(graph, scope, given, times, "loop")
            after = [body.scope.of(value) for value in graph.outputs[1:]]
            # Only what is so before and after a round is known of a state.
            states = [
                replace(before, shape=either([before, now]).shape)
                for before, now in zip(given[2:], after, strict=False)
            ]
            if states == given[2:]:
                return (body,)
            given[2:] = states

    def _scan(self, node: Node, scope: Scope) -> tuple[Body, ...]:
        graph = node.attributes.graph("body")
        if graph is None:
            return ()
        states, scanned, axes = scan_inputs(node)
        rows: list[TensorInfo] = []
        times: set[Dim] = set()
        for info, axis in zip(scanned, axes, strict=True):
            shape = None
            if info.shape is not None:
                at = axis_of(axis, len(info.shape))
                times.add(info.shape[at])
                shape = (*info.shape[:at], *info.shape[at + 1 :])
            rows.append(TensorInfo(info.dtype, shape))
        counts = {size for size in times if isinstance(size, int)} or times - {None}
        count = counts.pop() if len(counts) == 1 else None
        carried = [without_numbers(info) for info in states]
        given = self._declared(graph, [*carried, *rows])
        return (self._subgraph(graph, scope, given, count, "loop"),)

    def _declared(self, graph: ir.Graph, given: Sequence[TensorInfo]) -> list[TensorInfo]:
        """What is known of the inputs of a body, where it lacks from what they are declared."""
        pairs = zip(graph.inputs, given, strict=False)
        return [merged(info, self.says(value)) for value, info in pairs]

    def _subgraph(
        self,
        graph: ir.Graph,
        outer: Scope,
        given: Sequence[TensorInfo],
        times: Dim,
        kind: str,
    ) -> Body:
        scope = Scope(outer, outer.attributes, outer.depth + 1)
        for value, info in zip(graph.inputs, given, strict=False):
            scope.set(value, info)
        self._follow(graph, scope)
        return Body(graph, scope, times, kind)


def infer(model: ir.Model, sizes: Mapping[str, int]) -> Shapes:
    """Find the static shape and dtype of every value for which they can be known.

    Args:
        model: Any model, which is left as it is.
        sizes: A size for each open dimension, by its name; see `open_dimensions`.

    Returns:
        What is known; a value of an unknown operator has what the model declares for it.

    Example:
        >>> model = ir.from_onnx_text('''<ir_version: 8, opset_import: ["": 17]>
        ... double (float[N,2] x) => (float[N,2] y) { y = Add(x, x) }''')
        >>> infer(model, {"N": 3}).of("y").shape
        (3, 2)
    """
    return Shapes(model, sizes)


def open_dimensions(model: ir.Model) -> tuple[str, ...]:
    """The names of the dimensions of inputs that are not fixed, in order.

    An unnamed one is called after its input and axis, for example ``x[0]``.

    Args:
        model: Any model.
    """
    names = [
        symbol_of(value, axis)
        for value in model.graph.inputs
        if not value.is_initializer()
        for axis, size in enumerate(value.shape or ())
        if not is_fixed(size)
    ]
    return tuple(dict.fromkeys(names))
