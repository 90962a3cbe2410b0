"""Whether the graphs, nodes and attributes of an untrusted model are what they say."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import AttributeProto

from graphopt._words import shown
from graphopt.graphs import proto_subgraphs
from graphopt.soundness.control_flow import check_control_flow
from graphopt.soundness.names import check_name
from graphopt.soundness.tensors import check_dimensions, check_tensor, check_type

MOST_NODES = 2_000_000
"""Of a model, with its functions written out wherever they are called."""

MOST_WRITTEN = 500_000
"""Of a model as it is."""

_DEEPEST = 30  # of loops in loops; protobuf cannot write a file of more than 33

_FIELD_OF = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.GRAPH: "g",
    AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    AttributeProto.TYPE_PROTO: "tp",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
    AttributeProto.TENSORS: "tensors",
    AttributeProto.GRAPHS: "graphs",
    AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    AttributeProto.TYPE_PROTOS: "type_protos",
}
_DEFAULTS = {"f", "i", "s"}  # 0 and "", which some exporters write everywhere and others nowhere
_MESSAGES = {"t", "g", "sparse_tensor", "tp"}
_PLAIN = {kind for kind, field in _FIELD_OF.items() if field in {"f", "i", "s", "floats", "ints"}}
_NO_VALUE = {"name", "type", "doc_string", "ref_attr_name"}


@dataclass(frozen=True)
class Place:
    """A graph, or the body of a function, and what to call it.

    Attributes:
        body: It.
        name: Such as "the graph", or "a graph in node 'loop' (Loop)".
        depth: In how many nodes it is.
        function: Whether it is in the body of a function.
        around: The graph whose names it sees, without being in a node of it.
    """

    body: onnx.GraphProto | onnx.FunctionProto
    name: str
    depth: int = 0
    function: bool = False
    around: onnx.GraphProto | None = None


def places(model: onnx.ModelProto) -> Iterator[Place]:
    """All graphs and function bodies of a model, the outer before the inner.

    Raises:
        ValueError: They are nested too deeply, or have too many nodes.
    """
    waiting = list(outermost(model))
    nodes = 0
    while waiting:
        place = waiting.pop()
        nodes += len(place.body.node)
        if nodes >= MOST_WRITTEN:
            raise ValueError(f"it has {MOST_WRITTEN} nodes or more, which no network needs")
        if place.depth > _DEEPEST:
            raise ValueError(f"{place.name} is in more than {_DEEPEST} nodes, one in another")
        yield place
        for node in place.body.node:
            if node.attribute:
                waiting += inner(node, place)


def outermost(model: onnx.ModelProto) -> Iterator[Place]:
    """The graphs and function bodies that are in no node."""
    yield Place(model.graph, "the graph")
    for function in model.functions:
        yield Place(function, f"function '{shown(function.name)}'", function=True)
    for index, info in enumerate(model.training_info):
        yield Place(info.initialization, f"initialization {index} of training_info")
        algorithm = f"algorithm {index} of training_info"
        yield Place(info.algorithm, algorithm, around=model.graph)


def inner(node: onnx.NodeProto, place: Place) -> Iterator[Place]:
    """The graphs in a node of a graph."""
    for graph in proto_subgraphs(node):
        yield Place(graph, f"a graph in {describe(node)}", place.depth + 1, place.function)


def describe(node: onnx.NodeProto) -> str:
    """A node for an error: by its name, or by an output."""
    outputs = [name for name in node.output if name]
    kind = shown(node.op_type)
    if node.name or not outputs:
        return f"node '{shown(node.name)}' ({kind})"
    return f"the {kind} that gives '{shown(outputs[0])}'"


def tensors(place: Place) -> Iterator[tuple[onnx.TensorProto, str]]:
    """All tensors of a graph, without those of graphs in its nodes, each with what to call it."""
    body = place.body
    if isinstance(body, onnx.GraphProto):
        for tensor in body.initializer:
            yield tensor, f"initializer '{shown(tensor.name)}'"
        for sparse in body.sparse_initializer:
            yield from _parts(sparse, f"sparse initializer '{shown(sparse.values.name)}'")
    for attribute, where in attributes(place):
        if attribute.HasField("t"):
            yield attribute.t, where
        if attribute.HasField("sparse_tensor"):
            yield from _parts(attribute.sparse_tensor, where)
        for tensor in attribute.tensors:
            yield tensor, where
        for sparse in attribute.sparse_tensors:
            yield from _parts(sparse, where)


def types(place: Place) -> Iterator[tuple[onnx.TypeProto, str]]:
    """All types that a graph declares, each with what to call it."""
    body = place.body
    if isinstance(body, onnx.GraphProto):
        for value in (*body.input, *body.output):
            yield value.type, f"'{shown(value.name)}'"
    for value in body.value_info:
        yield value.type, f"'{shown(value.name)}'"
    for attribute, where in attributes(place):
        if attribute.HasField("tp"):
            yield attribute.tp, where
        for kind in attribute.type_protos:
            yield kind, where


def check_place(place: Place) -> None:
    """Refuse what is no graph: its names, tensors, types, nodes and attributes, each by itself.

    Raises:
        ValueError: It is damaged.
    """
    body = place.body
    check_name(body.name, place.name)
    if isinstance(body, onnx.GraphProto):
        for value in (*body.input, *body.output, *body.value_info):
            check_name(value.name, f"a value in {place.name}")
        for sparse in body.sparse_initializer:
            check_dimensions(sparse.dims, f"sparse initializer '{shown(sparse.values.name)}'")
    else:
        _check_signature(body, place)
    for node in body.node:
        _check_node(node, place)
    for tensor, where in tensors(place):
        check_name(tensor.name, where)
        check_tensor(tensor, where)
    for kind, where in types(place):
        check_type(kind, where)


def _check_signature(function: onnx.FunctionProto, place: Place) -> None:
    for name in (*function.input, *function.output, *function.attribute, function.domain):
        check_name(name, f"an input, output, attribute or the domain of {place.name}")
    check_name(function.overload, f"the overload of {place.name}")
    names = [*function.attribute, *(attribute.name for attribute in function.attribute_proto)]
    if len(set(names)) != len(names):
        raise ValueError(f"{place.name} has an attribute twice")
    for value in function.value_info:
        check_name(value.name, f"a value in {place.name}")
    for attribute in function.attribute_proto:
        _check_attribute(attribute, place.name, place)


def _check_node(node: onnx.NodeProto, place: Place) -> None:
    for name in (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output):
        check_name(name, f"a node in {place.name}, its operator or its values")
    where = describe(node)
    if not node.op_type:
        raise ValueError(f"{where} in {place.name} has no operator")
    names = {attribute.name for attribute in node.attribute}
    if len(names) != len(node.attribute):
        raise ValueError(f"{where} has an attribute twice")
    for attribute in node.attribute:
        _check_attribute(attribute, where, place)
    check_control_flow(node, where)


def _check_attribute(attribute: AttributeProto, owner: str, place: Place) -> None:
    check_name(attribute.name, f"an attribute of {owner}")
    check_name(attribute.ref_attr_name, f"what an attribute of {owner} refers to")
    where = f"attribute '{shown(attribute.name)}' of {owner}"
    if not attribute.name:
        raise ValueError(f"{where} has no name")
    held = {
        field.name
        for field, value in attribute.ListFields()
        if field.name not in _NO_VALUE and (value or field.name not in _DEFAULTS)
    }
    if attribute.ref_attr_name:
        if held or not place.function:
            raise ValueError(
                f"{where} refers to another attribute, expected that only in a function, "
                "without a value"
            )
        return
    expected = _FIELD_OF.get(attribute.type)
    if expected is None:
        raise ValueError(f"{where} has no type")
    if not held <= {expected} or (expected in _MESSAGES and not held):
        given = " and ".join(sorted(held)) or "nothing"
        raise ValueError(
            f"{where} has the type {AttributeProto.AttributeType.Name(attribute.type)}, "
            f"but holds {given}"
        )
    sparse = [attribute.sparse_tensor] if expected == "sparse_tensor" else []
    for tensor in (*sparse, *attribute.sparse_tensors):
        check_dimensions(tensor.dims, where)


def attributes(place: Place) -> Iterator[tuple[AttributeProto, str]]:
    """The attributes of a graph that hold more than numbers or a text, each with what to call it.

    Those of its nodes, and what a function has for its own.
    """
    if isinstance(place.body, onnx.FunctionProto):
        for attribute in place.body.attribute_proto:
            yield attribute, f"attribute '{shown(attribute.name)}' of {place.name}"
    for node in place.body.node:
        for attribute in node.attribute:
            if attribute.type not in _PLAIN:
                yield attribute, f"attribute '{shown(attribute.name)}' of {describe(node)}"


def _parts(sparse: onnx.SparseTensorProto, where: str) -> Iterator[tuple[onnx.TensorProto, str]]:
    yield sparse.values, f"the values of {where}"
    yield sparse.indices, f"the indices of {where}"
