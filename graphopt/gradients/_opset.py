"""Bringing a model to an opset that graphopt knows."""

from collections.abc import Collection
from typing import Any

import onnx
from onnx import version_converter


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own operators; 0 if the model names none."""
    return next((entry.version for entry in proto.opset_import if not entry.domain), 0)


def convert_opset(
    proto: onnx.ModelProto, least: int, most: int, written_out: Collection[str] = ()
) -> onnx.ModelProto:
    """The model at an opset of this range.

    Args:
        proto: The model.
        least: The lowest opset.
        most: The highest.
        written_out: Operators that will be replaced, so that the opset need not have them.

    Raises:
        ValueError: It cannot be converted.
    """
    opset = opset_of(proto)
    target = min(max(opset, least), most)
    if opset == target:
        return proto
    if not opset and any(not node.domain for node in proto.graph.node):
        raise ValueError(
            "the model does not say which version of ONNX's own operators it has (opset_import "
            "has no entry of the default domain), and has such nodes; export it again"
        )
    if not opset:
        return _relabelled(proto, target)
    if opset > target and all(
        _is_the_same(node, opset, target, written_out) for node in proto.graph.node
    ):
        return _relabelled(proto, target)
    _check_hardmax(proto, opset)
    try:
        if opset < 10:  # in which Upsample is Resize
            proto = version_converter.convert_version(proto, 10)
        linear = _linear_resizes(proto)
        converted = version_converter.convert_version(proto, target)
    except Exception as error:  # noqa: BLE001 - whatever the converter's C++ side gives
        raise ValueError(
            f"the model has opset {opset}, a training graph needs {least} to {most}, "
            f"and converting it failed: {error}; export the model again with opset {target}"
        ) from None
    for node in converted.graph.node:
        # Up to opset 10 it was so; the converter leaves the new default.
        if node.op_type == "Resize" and node.output[0] in linear:
            kept = [a for a in node.attribute if a.name != "coordinate_transformation_mode"]
            del node.attribute[:]
            mode = onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric")
            node.attribute.extend([*kept, mode])
    return converted


def _is_the_same(
    node: onnx.NodeProto, opset: int, target: int, written_out: Collection[str]
) -> bool:
    """Whether an operator differs between two opsets by the types that it takes, at most."""
    if node.domain:
        return True
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        return False
    try:
        new: Any = onnx.defs.get_schema(node.op_type, opset)
        old: Any = onnx.defs.get_schema(node.op_type, target)
    except onnx.defs.SchemaError:
        return node.op_type in written_out
    if new.since_version == old.since_version:
        return True
    return bool(
        [formal.name for formal in new.inputs] == [formal.name for formal in old.inputs]
        and len(new.outputs) == len(old.outputs)
        and {attribute.name for attribute in node.attribute} <= set(old.attributes)
        and all(
            old.attributes[name].default_value == attribute.default_value
            for name, attribute in new.attributes.items()
            if name in old.attributes
        )
    )


def _relabelled(proto: onnx.ModelProto, target: int) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for entry in copy.opset_import:
        if not entry.domain:
            entry.version = target
    if not opset_of(copy):
        copy.opset_import.append(onnx.helper.make_opsetid("", target))
    return copy


def _check_hardmax(proto: onnx.ModelProto, opset: int) -> None:
    if opset >= 13:
        return
    for node in proto.graph.node:
        if node.op_type == "Hardmax" and not node.domain:
            raise ValueError(
                f"Hardmax '{node.name or node.output[0]}': before opset 13 it flattened its input, "
                f"and the model has opset {opset}; export it again with opset 17"
            )


def _linear_resizes(proto: onnx.ModelProto) -> set[str]:
    """The outputs of the nodes that interpolated as Resize did before opset 11."""
    if opset_of(proto) > 10:
        return set()
    return {
        node.output[0]
        for node in proto.graph.node
        if node.op_type == "Resize"
        and any(a.name == "mode" and a.s == b"linear" for a in node.attribute)
    }
