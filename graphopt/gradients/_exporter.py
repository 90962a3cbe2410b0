"""Traces that an exporter leaves of what it did to a model that was to be trained."""

import re
from collections.abc import Set as AbstractSet

import onnx

_RULE = "pkg.onnxscript.rewriter.rule_name"
_FX_NODE = "pkg.torch.onnx.fx_node"
_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
_REMEDY = (
    "export the model again with torch.onnx.export(..., optimize=False), or with dynamo=False, "
    "training=torch.onnx.TrainingMode.TRAINING and do_constant_folding=False"
)


def check_export(proto: onnx.ModelProto, trained: AbstractSet[str]) -> None:
    """Refuse a model whose trained parameters are no longer those of the exported network.

    Raises:
        ValueError: Batch normalization was folded into a layer that is trained, or parameters
            have been removed.
    """
    for node in proto.graph.node:
        rules = [entry.value for entry in node.metadata_props if entry.key == _RULE]
        if any("FuseBatchNorm" in rule for rule in rules) and not trained.isdisjoint(node.input):
            raise ValueError(
                f"{node.op_type} '{node.name or node.output[0]}': the exporter has folded batch "
                f"normalization into it, which would not be trained as such; {_REMEDY}. To train "
                f"the folded weights as they are, remove '{_RULE}' from the metadata of the node"
            )
    _check_removed(proto)


def _check_removed(proto: onnx.ModelProto) -> None:
    """PyTorch's exporter notes all parameters, and which of them each node has read."""
    noted = {entry.key: entry.value for entry in proto.graph.metadata_props}.get(_SIGNATURE, "")
    parameters = dict(re.findall(r"(\w+): PARAMETER target='([^']+)'", noted))
    initializers = {tensor.name for tensor in proto.graph.initializer}
    read = {
        name
        for node in proto.graph.node
        for entry in node.metadata_props
        if entry.key == _FX_NODE
        for name in re.findall(r"%(\w+)", entry.value)
    }
    removed = [
        target
        for placeholder, target in parameters.items()
        if target not in initializers and placeholder in read
    ]
    if removed:
        listed = ", ".join(f"'{name}'" for name in removed[:5])
        more = f" and {len(removed) - 5} more" if len(removed) > 5 else ""
        raise ValueError(
            f"the exporter has removed the parameters {listed}{more}: it merges parameters that "
            "are equal, leaves out biases of zeros, and computes constants from weights, which "
            f"would not be trained as in PyTorch; {_REMEDY}"
        )
