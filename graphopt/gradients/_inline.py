"""Operators that ONNX itself defines by simpler ones."""

from collections.abc import Collection
from typing import Any

import onnx
from onnx import inliner


def inline_schema_functions(proto: onnx.ModelProto, known: Collection[str]) -> onnx.ModelProto:
    """Replace operators that are not ``known`` by their definition, where ONNX has one."""
    opset = next(entry.version for entry in proto.opset_import if not entry.domain)
    unknown = {
        node.op_type
        for node in (*proto.graph.node, *(n for f in proto.functions for n in f.node))
        if not node.domain and node.op_type not in known and _is_function(node.op_type, opset)
    }
    if not unknown:
        return proto
    # A definition may use operators that have one themselves.
    inlined = inliner.inline_selected_functions(
        proto, [("", op_type) for op_type in sorted(unknown)], inline_schema_functions=True
    )
    return inline_schema_functions(inlined, known)


def _is_function(op_type: str, opset: int) -> bool:
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
