"""Operators that ONNX itself defines by simpler ones."""

from collections.abc import Collection
from typing import Any

import onnx
import onnx_ir as ir
from onnx import inliner

from graphopt.forward import to_ir
from graphopt.gradients._opset import opset_of
from graphopt.shapes.in_place import infer_shapes


def inline_schema_functions(proto: onnx.ModelProto, known: Collection[str]) -> onnx.ModelProto:
    """Replace operators that are not ``known`` by their definition, where ONNX has one."""
    opset = opset_of(proto)
    nodes = [*proto.graph.node, *(node for body in proto.functions for node in body.node)]
    unknown = {
        node.op_type
        for node in nodes
        if not node.domain and node.op_type not in known and _is_defined(node.op_type, opset)
    }
    if not unknown:
        return proto
    typed = to_ir(proto)  # some definitions depend on types
    infer_shapes(typed)
    proto = ir.to_proto(typed)
    for node in proto.graph.node:
        if not node.domain and node.op_type in unknown:
            _write_defaults(node, opset)
    try:
        inlined = inliner.inline_selected_functions(
            proto, [("", op_type) for op_type in sorted(unknown)], inline_schema_functions=True
        )
    except Exception as error:  # noqa: BLE001 - whatever the inliner's C++ side gives
        raise ValueError(
            f"operators {', '.join(sorted(unknown))} have no gradient of their own, and writing "
            f"them out failed: {error}; declare the shapes of the model's inputs"
        ) from None
    # A definition may use operators that have one themselves.
    return inline_schema_functions(inlined, known)


def _is_defined(op_type: str, opset: int) -> bool:
    """Whether ONNX defines an operator by others, which an opset has."""
    try:
        schema: Any = onnx.defs.get_schema(op_type, opset)  # lacks type information
    except onnx.defs.SchemaError:
        return False
    versions = [
        *schema.function_opset_versions,
        *schema.context_dependent_function_opset_versions,
    ]
    return any(version <= opset for version in versions)


def _write_defaults(node: onnx.NodeProto, opset: int) -> None:
    """Write out the defaults of a node's attributes, which the inliner forgets."""
    given = {attribute.name for attribute in node.attribute}
    node.attribute.extend(
        attribute.default_value
        for name, attribute in onnx.defs.get_schema(node.op_type, opset).attributes.items()
        if name not in given and attribute.default_value.type
    )
