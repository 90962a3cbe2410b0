"""Traces that an exporter leaves of what it did to a model that was to be trained."""

import re
from collections.abc import Iterable, Set as AbstractSet

import onnx

from graphopt.gradients._detached import lost_detach
from graphopt.gradients._stops import FX_NODE

FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"
_RULE = "pkg.onnxscript.rewriter.rule_name"
_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
_BY_BATCH = re.compile(
    r"native_batch_norm_legit(_functional)?\.\w+\]\(args = \(.*, True, [^,]+, [^,)]+\), kwargs"
)
_MEAN = re.compile(r"\.scatter_reduce\.\w+\]\(args = \([^)]*, mean\), kwargs")
_REMEDY = (
    "export the module with graphopt.torch.export, or with torch.onnx.export(..., optimize=False)"
)


def check_export(proto: onnx.ModelProto, trained: AbstractSet[str]) -> None:
    """Refuse a model whose trained parameters are no longer those of the exported network.

    Raises:
        ValueError: Batch normalization was folded into a layer that is trained, parameters have
            been removed or made constants, a tensor is no longer detached, or a mean is none.
    """
    _check_means(proto)
    for node in proto.graph.node:
        rules = [entry.value for entry in node.metadata_props if entry.key == _RULE]
        if any("FuseBatchNorm" in rule for rule in rules) and not trained.isdisjoint(node.input):
            raise ValueError(
                f"{node.op_type} '{node.name or node.output[0]}': the exporter has folded batch "
                f"normalization into it, which would not be trained as such; {_REMEDY}. To train "
                f"the folded weights as they are, remove '{_RULE}' from the metadata of the node"
            )
    signature = _signature(proto)
    _check_removed(proto, signature)
    _check_folded(proto, signature, trained)
    reader = lost_detach(proto, trained, _given(proto, signature))
    if reader:
        raise ValueError(
            f"{reader}: it reads a detached tensor, and the exporter has removed the node that "
            f"detaches it, so a gradient would flow where PyTorch has none; {_REMEDY}"
        )


def _check_means(proto: onnx.ModelProto) -> None:
    """PyTorch's exporter writes a scatter of means as one in which the last element stays."""
    for graph in (proto.graph, *proto.functions):
        for node in graph.node:
            notes = (entry.value for entry in node.metadata_props if entry.key == FX_NODE)
            reductions = [a.s for a in node.attribute if a.name == "reduction"]
            is_none = node.op_type == "ScatterElements" and reductions in ([], [b"none"])
            if is_none and any(_MEAN.search(note) for note in notes):
                raise ValueError(
                    f"ScatterElements '{node.name or node.output[0]}': the exporter has written "
                    'scatter_reduce(..., "mean") as a scatter without a mean, which computes '
                    "something else than PyTorch; export the module with graphopt.torch.export. To "
                    f"train the file as it is, remove '{FX_NODE}' from the metadata of the node"
                )


def restore_training_mode(proto: onnx.ModelProto) -> None:
    """Let batch normalization be in training mode where the program had it so.

    PyTorch's exporter writes it for evaluation, and notes at the node what it was.

    Args:
        proto: The forward model, changed in place.
    """
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization" and not node.domain:
            notes = (entry.value for entry in node.metadata_props if entry.key == FX_NODE)
            if any(_BY_BATCH.search(note) for note in notes):
                kept = [a for a in node.attribute if a.name != "training_mode"]
                del node.attribute[:]
                node.attribute.extend([*kept, onnx.helper.make_attribute("training_mode", 1)])


def _signature(proto: onnx.ModelProto) -> str:
    """What PyTorch's exporter notes of the inputs of the program: its parameters, too."""
    notes: dict[str, str] = {entry.key: entry.value for entry in proto.graph.metadata_props}
    return notes.get(_SIGNATURE, "")


def _given(proto: onnx.ModelProto, signature: str) -> dict[str, str]:
    """What the exporter called inputs and initializers, and how the model calls them."""
    targets = dict(re.findall(r"(\w+): [A-Z_]+ target='([^']+)'", signature))
    inputs = re.findall(r"(\w+): USER_INPUT\b", signature)
    return targets | dict(zip(inputs, (value.name for value in proto.graph.input), strict=False))


def _check_folded(proto: onnx.ModelProto, signature: str, trained: AbstractSet[str]) -> None:
    """PyTorch's exporter notes at a constant the values of which it was computed."""
    parameters = set(re.findall(r": PARAMETER target='([^']+)'", signature))
    fixed = {tensor.name for tensor in proto.graph.initializer} - trained
    nodes = (node for node in proto.graph.node if node.op_type != "Constant")
    computed = {name for node in nodes for name in node.output}
    constants: dict[str, str] = {}
    for value in (*proto.graph.value_info, *proto.graph.initializer):
        if value.name in computed:  # of a branch that was taken, or the like
            continue
        for entry in value.metadata_props:
            for name in re.findall(r"'([^']+)'", entry.value) if entry.key == FOLDED_FROM else ():
                if name in parameters - fixed:
                    constants.setdefault(name, value.name)
    if constants:
        listed = (f"'{name}' ('{constant}')" for name, constant in constants.items())
        raise ValueError(
            f"the exporter has computed constants from the parameters {_some(listed)}, which would "
            f"not be trained as in PyTorch; {_REMEDY}. To leave them as they are, remove "
            f"'{FOLDED_FROM}' from the metadata of the constants"
        )


def _some(listed: Iterable[str]) -> str:
    first, rest = (listed := list(listed))[:5], len(listed) - 5
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")


def _check_removed(proto: onnx.ModelProto, signature: str) -> None:
    """PyTorch's exporter notes all parameters, and which of them each node has read."""
    parameters = dict(re.findall(r"(\w+): PARAMETER target='([^']+)'", signature))
    initializers = {tensor.name for tensor in proto.graph.initializer}
    read = {
        name
        for node in proto.graph.node
        for entry in node.metadata_props
        if entry.key == FX_NODE
        for name in re.findall(r"%(\w+)", entry.value)
    }
    removed = [
        target
        for placeholder, target in parameters.items()
        if target not in initializers and placeholder in read
    ]
    if removed:
        listed = _some(f"'{name}'" for name in removed)
        raise ValueError(
            f"the exporter has removed the parameters {listed}: it merges parameters that "
            "are equal, leaves out biases of zeros, and computes constants from weights, which "
            f"would not be trained as in PyTorch; {_REMEDY}"
        )
