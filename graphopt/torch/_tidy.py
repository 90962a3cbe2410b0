"""What PyTorch's exporter leaves in a model that was not optimized, and training does not need."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from graphopt.marks import STOP_GRADIENT

_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_KEPT = (STOP_GRADIENT, "namespace")
_SAME = {"Expand", "Cast", "CastLike", "Reshape", "Identity"}


def tidy(model: ir.Model) -> None:
    """Make plain tensors of sequences, leave out biases of zeros, and remove what nothing reads."""
    graph = model.graph
    for node in list(graph):
        if node.domain:
            continue
        if node.op_type in _CONVOLUTIONS:
            _drop_bias_of_zeros(node)
        elif node.op_type == "SplitToSequence":
            _split_into_tensors(graph, node)
    _remove_unread(graph)
    for remove in (passes.RemoveUnusedFunctionsPass, passes.RemoveUnusedOpsetsPass):
        remove()(model)
    _remove_notes(model)


def _remove_unread(graph: ir.Graph) -> None:
    """Remove nodes that nothing reads; onnx_ir's pass takes batch normalization out of training."""
    for node in reversed(graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)


def _drop_bias_of_zeros(node: ir.Node) -> None:
    """The exporter gives one to layers without a bias, in the wrong shape to those of volumes."""
    if len(node.inputs) > 2 and node.inputs[2] is not None and _is_zero(node.inputs[2]):
        node.resize_inputs(2)


def _is_zero(value: ir.Value | None) -> bool:
    """Whether it is computed, and zero throughout."""
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in _SAME and not producer.domain:
        value = producer.inputs[0]
        producer = None if value is None else value.producer()
    if value is None or value.is_initializer():
        return False
    constant = ir.convenience.get_const_tensor(value)
    return constant is not None and not constant.numpy().any()


def _split_into_tensors(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a sequence, each element of which is read at a known place."""
    x, lengths = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    axis = node.attributes.get_int("axis", 0)
    reads = [use.node for use in node.outputs[0].uses()]
    places = [_number(read.inputs[1]) if read.op_type == "SequenceAt" else None for read in reads]
    if x is None or x.shape is None or None in places or node.outputs[0].is_graph_output():
        return
    size = x.shape[axis]
    parts = _parts(size, lengths)
    if parts is None:
        return
    keeps = lengths is not None or bool(node.attributes.get_int("keepdims", 1))
    split = ir.node(
        "Split",
        [x, _constant(graph, node, parts)],
        {"axis": axis},
        num_outputs=len(parts),
        name=node.name,
    )
    split.metadata_props.update(node.metadata_props)
    graph.insert_before(node, split)
    base = node.outputs[0].name
    for index, (value, length) in enumerate(zip(split.outputs, parts, strict=True)):
        value.name, value.type = f"{base}_part_{index}", x.type
        value.shape = ir.Shape(
            [length if i == axis % len(x.shape) else d for i, d in enumerate(x.shape)]
        )
    for read, place in zip(reads, places, strict=True):
        assert place is not None
        part = split.outputs[place]
        if not keeps:
            squeeze = ir.node("Squeeze", [part, _constant(graph, node, [axis])])
            graph.insert_before(read, squeeze)
            part = squeeze.outputs[0]
        ir.convenience.replace_nodes_and_values(graph, read, [read], [], read.outputs, [part])
    graph.remove(node, safe=True)


def _parts(size: int | ir.SymbolicDim, lengths: ir.Value | None) -> list[int] | None:
    """The lengths of the elements of a sequence."""
    if lengths is None:
        return [1] * size if isinstance(size, int) else None
    tensor = ir.convenience.get_const_tensor(lengths)
    if tensor is None:
        return None
    given = tensor.numpy()
    if given.ndim:
        return [int(length) for length in given]
    if not isinstance(size, int):
        return None
    most = int(given)
    return [min(most, size - start) for start in range(0, size, most)]


def _number(value: ir.Value | None) -> int | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else int(tensor.numpy().item())


def _constant(graph: ir.Graph, before: ir.Node, numbers: list[int]) -> ir.Value:
    node = ir.node("Constant", [], {"value": ir.tensor(np.array(numbers, np.int64))})
    graph.insert_before(before, node)
    return node.outputs[0]


def _remove_notes(model: ir.Model) -> None:
    """Remove paths of the user's files, and PyTorch's names of what was translated."""
    for node in model.graph.all_nodes():
        kept = {key: node.metadata_props[key] for key in _KEPT if key in node.metadata_props}
        node.metadata_props.clear()
        node.metadata_props.update(kept)
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        for key in [key for key in value.metadata_props if key.startswith("pkg.torch")]:
            del value.metadata_props[key]
