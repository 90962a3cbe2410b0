"""Whether branches and loops of an untrusted model take and give what their nodes do."""

import onnx
from onnx import AttributeProto

_GRAPHS = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}
_SCAN_INPUTS = "num_scan_inputs"


def check_control_flow(node: onnx.NodeProto, where: str) -> None:
    """Refuse an If, a Loop or a Scan whose graphs do not fit it; others are as they should be.

    Args:
        node: The node, whose attributes have been checked.
        where: What it is, for the error.

    Raises:
        ValueError: A graph is missing, or takes or gives another number of values.
    """
    if node.op_type not in _GRAPHS or node.domain not in ("", "ai.onnx"):
        return
    attributes = {attribute.name: attribute for attribute in node.attribute}
    for name in _GRAPHS[node.op_type]:
        attribute = attributes.get(name)
        if attribute is None or attribute.type != AttributeProto.GRAPH:
            raise ValueError(f"{where} has no graph '{name}'")
        if not attribute.ref_attr_name:  # what a function is given, it is not checked for
            _check_graph(node, attribute.g, f"the graph '{name}' of {where}")
    if node.op_type == "Scan":
        _check_scan_inputs(node, attributes.get(_SCAN_INPUTS), where)


def _check_graph(node: onnx.NodeProto, graph: onnx.GraphProto, where: str) -> None:
    given, taken = len(node.output), len(node.input)
    # A Loop's body also says whether to go on, and is told the number of the iteration; before
    # opset 9 the first input of a Scan was for the lengths of sequences.
    gives = len(graph.output) - (node.op_type == "Loop")
    takes = {"If": {0}, "Loop": {max(taken, 2)}, "Scan": {taken, taken - 1}}[node.op_type]
    if gives < given:
        raise ValueError(f"{where} gives {gives} values, expected {given}")
    if len(graph.input) not in takes:
        raise ValueError(f"{where} takes {len(graph.input)} values, expected {max(takes)}")


def _check_scan_inputs(node: onnx.NodeProto, attribute: AttributeProto | None, where: str) -> None:
    if attribute is None or attribute.type != AttributeProto.INT:
        raise ValueError(f"{where} has no number '{_SCAN_INPUTS}'")
    if not attribute.ref_attr_name and not 1 <= attribute.i <= len(node.input):
        raise ValueError(
            f"{where}: {_SCAN_INPUTS} is {attribute.i}, expected 1 to {len(node.input)}"
        )
