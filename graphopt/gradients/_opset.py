"""Bringing a model to an opset that graphopt knows."""

from collections.abc import Collection
from typing import Any

import onnx
from onnx import version_converter

from graphopt.gradients._old_operators import OldOperators
from graphopt.mapped_values import loaded


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
    own = onnx.ModelProto()
    own.CopyFrom(loaded(proto))
    old = OldOperators(own, opset)
    if opset:
        own = old.prepare()
    try:
        if opset < 10:  # in which Upsample is Resize
            own = version_converter.convert_version(own, 10)
        converted = version_converter.convert_version(own, target)
    except Exception as error:  # noqa: BLE001 - whatever the converter's C++ side gives
        raise ValueError(
            f"the model has opset {opset}, a training graph needs {least} to {most}, "
            f"and converting it failed: {error}; export the model again with opset {target}"
        ) from None
    if opset <= 10:
        old.at_opset_10(own)
    return old.complete(converted)


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
