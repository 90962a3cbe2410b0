"""What PyTorch's exporter leaves in a model that was not optimized, and training does not need."""

import onnx_ir as ir
from onnx_ir.passes import common as passes

from graphopt.builder import GraphBuilder
from graphopt.gradients import write_tensors
from graphopt.marks import STOP_GRADIENT

_CONVOLUTIONS = {"Conv", "ConvTranspose"}
_KEPT = (STOP_GRADIENT, "namespace")
_SAME = {"Expand", "Cast", "CastLike", "Reshape", "Identity"}


def tidy(model: ir.Model) -> None:
    """Make plain tensors of sequences, leave out biases of zeros, and remove what nothing reads.

    Its values are copies of the module's, which what the module learns later does not change.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type in _CONVOLUTIONS and not node.domain:
            _drop_bias_of_zeros(node)
    write_tensors(GraphBuilder(graph), set(graph.all_nodes()), ())
    graph.sort()
    _remove_unread(graph)
    for remove in (passes.RemoveUnusedFunctionsPass, passes.RemoveUnusedOpsetsPass):
        remove()(model)
    _remove_notes(model)
    for initializer in graph.initializers.values():
        if (tensor := initializer.const_value) is not None:
            array = tensor.numpy().copy()
            initializer.const_value = ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)


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
