"""Operators that ONNX itself defines by simpler ones."""

from collections.abc import Collection
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from graphopt import graphs
from graphopt.forward import to_ir
from graphopt.gradients._opset import opset_of
from graphopt.graphs import proto_nodes, subgraphs
from graphopt.operators.path import nodes_between
from graphopt.shapes.in_place import infer_shapes
from graphopt.versions import MAX_OPSET

_DOMAIN = "graphopt.definition"


def inline_schema_functions(
    proto: onnx.ModelProto,
    known: Collection[str],
    trained: Collection[str],
    outputs: Collection[str] | None = None,
) -> onnx.ModelProto:
    """Replace operators that are not ``known`` by their definition, where ONNX has one.

    Only those are replaced that a gradient goes through, and those that no opset of ours has. One
    with a graph of its own, as SequenceMap, stays: a function cannot be called with a graph.

    Args:
        proto: A model without functions.
        known: Operators that stay.
        trained: The names of the trained parameters.
        outputs: The names of the outputs that the loss reads; None for all.

    Raises:
        ValueError: A definition needs the type of an input, which is not known.
    """
    opset = opset_of(proto)
    defined = {
        node.op_type
        for node in proto_nodes(proto.graph.node)
        if not node.domain and node.op_type not in known and _versions(node.op_type, opset)
    }
    if not defined:
        return proto
    model = to_ir(proto)
    unknown = [
        node
        for node in wanted_nodes(model, trained, outputs)
        if not node.domain and node.op_type in defined and not any(subgraphs(node))
    ]
    unknown += [
        node
        for node in model.graph.all_nodes()
        if not node.domain and node.op_type in defined and not _exists(node.op_type, MAX_OPSET)
    ]
    if not unknown:
        return proto
    infer_shapes(model)  # some definitions depend on types
    for node in dict.fromkeys(unknown):
        _define(model, node, opset)
    passes.InlinePass()(model)
    # A definition may use operators that have one themselves.
    return inline_schema_functions(ir.to_proto(model), known, trained, outputs)


def without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions written out: converting its opset would lose them."""
    try:
        return graphs.without_functions(proto, convert_version=True)
    except Exception as error:  # noqa: BLE001 - whatever the inliner's C++ side gives
        raise ValueError(f"the functions of the model cannot be inlined: {error}") from None


def wanted_nodes(
    model: ir.Model, trained: Collection[str], outputs: Collection[str] | None
) -> set[ir.Node]:
    """The nodes of a model through which a gradient may go, also those in branches and loops."""
    graph = model.graph
    given = (*graph.inputs, *graph.initializers.values())
    sources = [value for value in given if value.name in trained]
    targets = [v for v in graph.outputs if outputs is None or v.name in outputs]
    return nodes_between(graph, sources, targets)


def _exists(op_type: str, opset: int) -> bool:
    try:
        onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return False
    return True


def _versions(op_type: str, opset: int) -> tuple[list[int], list[int]] | None:
    """The opsets for which an operator has definitions, and ones that depend on a node."""
    if not _exists(op_type, opset):
        return None
    schema: Any = onnx.defs.get_schema(op_type, opset)  # lacks type information
    fixed, dependent = (
        [version for version in versions if version <= opset]
        for versions in (
            schema.function_opset_versions,
            schema.context_dependent_function_opset_versions,
        )
    )
    return (fixed, dependent) if fixed or dependent else None


def _define(model: ir.Model, node: ir.Node, opset: int) -> None:
    """Let a node call its definition: a function of its own, for inputs may be left out of it."""
    schema: Any = onnx.defs.get_schema(node.op_type, opset)
    for name, attribute in schema.attributes.items():
        if name not in node.attributes and attribute.default_value.type:
            node.attributes.add(ir.serde.deserialize_attribute(attribute.default_value))
    fixed, dependent = _versions(node.op_type, opset) or ([], [])
    if fixed:
        text = schema.get_function_with_opset_version(max(fixed))
    else:
        types = [_type_of(value).SerializeToString() for value in node.inputs]
        try:
            text = schema.get_context_dependent_function_with_opset_version(
                max(dependent), ir.serde.serialize_node(node).SerializeToString(), types
            )
        except Exception as error:  # noqa: BLE001 - whatever onnx's C++ side gives
            raise ValueError(_problem(node, str(error))) from None
    definition = onnx.FunctionProto.FromString(text)
    if not definition.node:
        raise ValueError(_problem(node, "the type of an input is not known"))
    made = {name for inner in definition.node for name in inner.output}
    del definition.output[len(node.outputs) :]
    for name, value in zip(definition.output, node.outputs, strict=False):
        if name not in made and not value.uses() and not value.is_graph_output():
            # Some have an output only where an attribute asks for it.
            definition.node.add(op_type="Identity", input=definition.input[:1], output=[name])
    definition.domain, definition.name = _DOMAIN, f"{node.op_type}_{len(model.functions)}"
    del definition.opset_import[:]
    definition.opset_import.append(onnx.helper.make_opsetid("", opset))
    function = ir.serde.deserialize_function(definition)
    model.functions[function.identifier()] = function
    node.domain, node.op_type = function.domain, function.name


def _problem(node: ir.Node, problem: str) -> str:
    return (
        f"{node.op_type} '{node.name or node.outputs[0].name}' has no gradient of its own, and "
        f"writing it out failed: {problem}; declare the shapes of the model's inputs"
    )


def _type_of(value: ir.Value | None) -> onnx.TypeProto:
    """The type of an input; empty where it is left out or unknown."""
    if value is None or value.type is None:
        return onnx.TypeProto()
    kind = ir.serde.serialize_type(value.type)
    if value.shape is not None:
        ir.serde.serialize_shape_into(kind, value.shape)
    return kind
