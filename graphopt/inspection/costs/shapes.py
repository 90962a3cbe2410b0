"""Shapes and dtypes of the values of a model, with sizes for its open dimensions.

ONNX's own shape inference is not used: a model that was made for it keeps it busy, and takes
memory, for as long as its author likes. Here each node costs about the same, and what a
rule does not know is unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto

from graphopt.inspection.costs.shape_rules import RULES, axis_of
from graphopt.inspection.costs.shape_values import (
    UNKNOWN,
    Attributes,
    Node,
    TensorInfo,
    merged,
    of_initializer,
    of_type,
    operator,
    static_size,
    tensor,
)

_DEEPEST = 24  # bodies within bodies
_BODIES = {"If", "Loop", "Scan"}
_MOST_NODES = 1_000_000  # that are looked at, those of a body once for each kind of call


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
        attributes: Mapping[str, AttributeProto] | None = None,
        depth: int = 0,
    ) -> None:
        """A scope in which no value is known yet."""
        self.outer = outer
        self.attributes = attributes or {}
        self.depth = depth
        self._values: dict[str, TensorInfo] = {}

    def of(self, name: str) -> TensorInfo:
        """What is known of a value."""
        found = self._values.get(name)
        if found is None:
            return UNKNOWN if self.outer is None else self.outer.of(name)
        return found

    def set(self, name: str, info: TensorInfo) -> None:
        """Say what is known of a value."""
        if name:
            self._values[name] = info

    def node(self, proto: onnx.NodeProto) -> Node:
        """A node of this place, with what is known of its inputs."""
        return Node(
            operator(proto),
            tuple(self.of(name) if name else None for name in proto.input),
            len(proto.output),
            Attributes(proto, self.attributes),
        )


@dataclass(frozen=True)
class Body:
    """The nodes inside a node.

    Attributes:
        nodes: The nodes.
        scope: What is known of their values.
        times: How often they run; None where that is not known.
        inputs: The values that come from outside by their own name in here.
        outputs: The values that go outside.
        kind: "function", "loop", or "branch", of which one of several runs.
    """

    nodes: Sequence[onnx.NodeProto]
    scope: Scope
    times: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kind: str


@dataclass
class Shapes:
    """What is known of the values of a model.

    Attributes:
        scope: The values of the graph itself.
    """

    scope: Scope
    _functions: Mapping[tuple[str, str], onnx.FunctionProto]
    _sizes: Mapping[str, int]
    _seen: int = 0
    _calls: dict[object, Body] = field(default_factory=dict)
    _bodies: dict[tuple[int, int], tuple[onnx.NodeProto, Scope, tuple[Body, ...]]] = field(
        default_factory=dict
    )

    def of(self, name: str) -> TensorInfo:
        """What is known of a value of the graph."""
        return self.scope.of(name)

    def bodies(self, proto: onnx.NodeProto, scope: Scope) -> tuple[Body, ...]:
        """The bodies of a node: of its function, loop or branches; none if it has none.

        Args:
            proto: The node.
            scope: The scope in which it stands.
        """
        if not self._may_have_bodies(proto):
            return ()
        key = (id(proto), id(scope))
        found = self._bodies.get(key)
        if found is None or found[0] is not proto:
            # Both are kept with the result, so that their ids stay theirs.
            found = (proto, scope, self._found_bodies(proto, scope))
            self._bodies[key] = found
        return found[2]

    def follow(self, nodes: Iterable[onnx.NodeProto], scope: Scope, declared: "_Declared") -> None:
        """Find what is known of what these nodes compute, in order."""
        for proto in nodes:
            self._seen += 1
            for name, info in zip(proto.output, self._outputs(proto, scope), strict=False):
                scope.set(name, info)
            for name in proto.output:
                if name in declared:
                    scope.set(name, merged(scope.of(name), declared[name]))

    def _outputs(self, proto: onnx.NodeProto, scope: Scope) -> Sequence[TensorInfo]:
        if self._seen > _MOST_NODES:
            return ()
        rule = RULES.get(operator(proto))
        try:
            if (proto.domain, proto.op_type) in self._functions or rule is None:
                return self._through_bodies(proto, scope)
            return rule(scope.node(proto))
        except (ArithmeticError, IndexError, TypeError, ValueError):  # the node makes no sense
            return ()

    def _through_bodies(self, proto: onnx.NodeProto, scope: Scope) -> Sequence[TensorInfo]:
        bodies = self.bodies(proto, scope)
        if not bodies:
            return ()
        given = [[body.scope.of(name) for name in body.outputs] for body in bodies]
        if bodies[0].kind == "function":
            return given[0]
        if bodies[0].kind == "branch":
            return [_either(infos) for infos in zip(*given, strict=True)]
        return _loop_outputs(scope.node(proto), bodies[0], given[0])

    def _may_have_bodies(self, proto: onnx.NodeProto) -> bool:
        return (proto.domain, proto.op_type) in self._functions or operator(proto) in _BODIES

    def _found_bodies(self, proto: onnx.NodeProto, scope: Scope) -> tuple[Body, ...]:
        if scope.depth >= _DEEPEST or self._seen > _MOST_NODES:
            return ()
        function = self._functions.get((proto.domain, proto.op_type))
        if function is not None:
            return (self._call(function, scope.node(proto), scope.depth + 1),)
        makers = {"If": self._branches, "Loop": self._loop, "Scan": self._scan}
        maker = makers.get(operator(proto))
        try:
            return () if maker is None else maker(scope.node(proto), scope)
        except (ArithmeticError, IndexError, TypeError, ValueError):  # the node makes no sense
            return ()

    def _call(self, function: onnx.FunctionProto, node: Node, depth: int) -> Body:
        """The body of a function, for what is known of these inputs; once for each such call."""
        attributes = {entry.name: entry for entry in function.attribute_proto}
        attributes |= node.attributes.all
        given = tuple(sorted((k, a.SerializeToString()) for k, a in node.attributes.all.items()))
        key = (function.domain, function.name, node.inputs, given, depth)
        if key not in self._calls:
            scope = Scope(attributes=attributes, depth=depth)
            for name, info in zip(function.input, node.inputs, strict=False):
                scope.set(name, info or UNKNOWN)
            self.follow(function.node, scope, {})
            self._calls[key] = Body(
                function.node, scope, 1, tuple(function.input), tuple(function.output), "function"
            )
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
        most = node.input(0).numbers
        states = [TensorInfo(info.dtype, info.shape) if info else UNKNOWN for info in node.inputs]
        given = [tensor(onnx.TensorProto.INT64, ()), tensor(onnx.TensorProto.BOOL, ()), *states[2:]]
        times = max(int(most[0]), 0) if most else None
        return (self._subgraph(graph, scope, given, times, "loop"),)

    def _scan(self, node: Node, scope: Scope) -> tuple[Body, ...]:
        graph = node.attributes.graph("body")
        if graph is None:
            return ()
        states, scanned, axes = _scan_inputs(node)
        times = {
            info.shape[axis_of(axis, len(info.shape))]
            for info, axis in zip(scanned, axes, strict=True)
            if info.shape is not None
        } - {None}
        rows = [
            TensorInfo(info.dtype, _without(info.shape, axis))
            for info, axis in zip(scanned, axes, strict=True)
        ]
        carried = [TensorInfo(info.dtype, info.shape) for info in states]
        count = times.pop() if len(times) == 1 else None
        return (self._subgraph(graph, scope, [*carried, *rows], count, "loop"),)

    def _subgraph(
        self,
        graph: onnx.GraphProto,
        outer: Scope,
        given: Sequence[TensorInfo],
        times: int | None,
        kind: str,
    ) -> Body:
        scope = Scope(outer, outer.attributes, outer.depth + 1)
        _fill(scope, graph)
        for value, info in zip(graph.input, given, strict=False):
            scope.set(value.name, merged(info, of_type(value.type, self._sizes)))
        self.follow(graph.node, scope, _declared(graph, self._sizes))
        names = (
            tuple(value.name for value in graph.input),
            tuple(value.name for value in graph.output),
        )
        return Body(graph.node, scope, times, *names, kind)


_Declared = Mapping[str, TensorInfo]


def infer(model: onnx.ModelProto, sizes: Mapping[str, int]) -> Shapes:
    """Find the static shape and dtype of every value for which they can be known.

    Args:
        model: Any model, also a damaged one.
        sizes: A size for each open dimension, by its name; see `open_dimensions`.

    Returns:
        What is known; a value of an unknown operator has what the model declares for it.

    Example:
        >>> model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["": 17]>
        ... double (float[N,2] x) => (float[N,2] y) { y = Add(x, x) }''')
        >>> infer(model, {"N": 3}).of("y").shape
        (3, 2)
    """
    functions = {(function.domain, function.name): function for function in model.functions}
    found = Shapes(Scope(), functions, sizes)
    for value in model.graph.input:
        found.scope.set(value.name, of_type(value.type, sizes, value.name))
    _fill(found.scope, model.graph)
    found.follow(model.graph.node, found.scope, _declared(model.graph, sizes))
    return found


def open_dimensions(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the dimensions of inputs that are not fixed, in order.

    An unnamed one is called after its input and axis, for example ``x[0]``.

    Args:
        model: Any model.
    """
    stored = {value.name for value in model.graph.initializer}
    names = []
    for value in model.graph.input:
        if value.name in stored or not value.type.HasField("tensor_type"):
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if static_size(dim) is None:
                names.append(dim.dim_param or f"{value.name}[{axis}]")
    return tuple(dict.fromkeys(names))


def _fill(scope: Scope, graph: onnx.GraphProto) -> None:
    """What is known of the initializers of a graph."""
    for stored in graph.initializer:
        scope.set(stored.name, of_initializer(stored))
    for sparse in graph.sparse_initializer:
        scope.set(sparse.values.name, tensor(sparse.values.data_type, tuple(sparse.dims)))


def _declared(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> dict[str, TensorInfo]:
    return {value.name: of_type(value.type, sizes) for value in (*graph.value_info, *graph.output)}


def _scan_inputs(node: Node) -> tuple[list[TensorInfo], list[TensorInfo], tuple[int, ...]]:
    """The states of a Scan, what it scans, and along which axes."""
    given = [info or UNKNOWN for info in node.inputs]
    count = node.attributes.integer("num_scan_inputs")
    if not 0 <= count <= len(given):
        raise ValueError(f"num_scan_inputs: got {count}, expected {len(given)} at most")
    states, scanned = given[: len(given) - count], given[len(given) - count :]
    return states, scanned, node.attributes.integers("scan_input_axes") or (0,) * count


def _loop_outputs(node: Node, body: Body, inner: Sequence[TensorInfo]) -> list[TensorInfo]:
    """What a Scan or Loop gives: the states, and what each round adds to a list."""
    if node.op_type == "Loop":
        inner = inner[1:]  # the condition
        states, axes = len(node.inputs) - 2, None
    else:
        states, axes = len(_scan_inputs(node)[0]), node.attributes.integers("scan_output_axes")
    found = []
    for at, info in enumerate(inner):
        if at < states:
            found.append(TensorInfo(info.dtype, info.shape))
        elif info.shape is None:
            found.append(TensorInfo(info.dtype))
        else:
            axis = axis_of(axes[at - states], len(info.shape) + 1) if axes else 0
            found.append(tensor(info.dtype, [*info.shape[:axis], body.times, *info.shape[axis:]]))
    return found


def _without(shape: Sequence[int | None] | None, axis: int) -> tuple[int | None, ...] | None:
    if shape is None:
        return None
    at = axis_of(axis, len(shape))
    return (*shape[:at], *shape[at + 1 :])


def _either(infos: Sequence[TensorInfo]) -> TensorInfo:
    """What holds for whichever branch runs."""
    first, *others = infos
    dtype, shape = first.dtype, first.shape
    for other in others:
        dtype = dtype if dtype == other.dtype else 0
        if shape is None or other.shape is None or len(shape) != len(other.shape):
            shape = None
        else:
            pairs = zip(shape, other.shape, strict=True)
            shape = tuple(a if a == b else None for a, b in pairs)
    return TensorInfo(dtype, shape)
