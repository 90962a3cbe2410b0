"""Traces that an exporter leaves of what it did to a model that was to be trained."""

import re
from collections.abc import Set as AbstractSet

import onnx

_RULE = "pkg.onnxscript.rewriter.rule_name"
_FX_NODE = "pkg.torch.onnx.fx_node"
_FOLDED = "pkg.onnxscript.optimizer.folded_from"
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
_REMEDY = (
    "export the model again with torch.onnx.export(..., optimize=False), or with dynamo=False, "
    "training=torch.onnx.TrainingMode.TRAINING and do_constant_folding=False"
)


def check_export(proto: onnx.ModelProto, trained: AbstractSet[str]) -> None:
    """Refuse a model whose trained parameters are no longer those of the exported network.

    Raises:
        ValueError: Batch normalization was folded into a layer that is trained, two parameters
            that were equal have become one, or parameters have become constants.
    """
    metadata = [
        (node, {entry.key: entry.value for entry in node.metadata_props})
        for node in proto.graph.node
        if node.metadata_props and not trained.isdisjoint(node.input)
    ]
    for node, entries in metadata:
        if "FuseBatchNorm" in entries.get(_RULE, ""):
            raise ValueError(
                f"{node.op_type} '{node.name or node.output[0]}': the exporter has folded batch "
                f"normalization into it, which would not be trained as such; {_REMEDY}. To train "
                f"the folded weights as they are, remove '{_RULE}' from the metadata of the node"
            )
    _check_merged(metadata, proto.graph, trained)
    _check_folded(proto.graph)


def _check_merged(
    metadata: list[tuple[onnx.NodeProto, dict[str, str]]],
    graph: onnx.GraphProto,
    trained: AbstractSet[str],
) -> None:
    """The exporter notes the parameters of each node; one that is gone has been merged."""
    exported = {_placeholder(tensor.name): tensor.name for tensor in graph.initializer}
    noted = [
        (node, set(re.findall(r"%(p_\w+)", entries.get(_FX_NODE, ""))))
        for node, entries in metadata
    ]
    known = {name for _, names in noted for name in names}
    for node, names in noted:
        gone = sorted(names - exported.keys())
        stands_in = [
            name for name in node.input if name in trained and _placeholder(name) in known - names
        ]
        if gone and stands_in:
            raise ValueError(
                f"{node.op_type} '{node.name or node.output[0]}' reads parameter '{stands_in[0]}' "
                f"in place of one of its own ('{gone[0]}'): the exporter merges parameters that "
                f"are equal, and they would be trained as one; {_REMEDY}, or give them different "
                "values before the export"
            )


def _check_folded(graph: onnx.GraphProto) -> None:
    """The exporter notes what a constant was computed from; a name with a dot is a parameter's."""
    floats = {t.name for t in graph.initializer if t.data_type in _FLOATS}
    for value in graph.value_info:
        entries = {entry.key: entry.value for entry in value.metadata_props}
        sources = re.findall(r"'([^']*\.[^']*)'", entries.get(_FOLDED, ""))
        if sources and value.name in floats:
            listed = ", ".join(f"'{name}'" for name in sources)
            raise ValueError(
                f"the exporter has computed the constant '{value.name}' from {listed}, "
                f"which would not be trained; {_REMEDY}"
            )


def _placeholder(name: str) -> str:
    """What PyTorch calls a parameter in an exported program."""
    return "p_" + re.sub(r"\W", "_", name)
