"""A forward model as it is used after training: without Dropout, by the running statistics."""

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from graphopt.dropping import remove_written_dropout
from graphopt.forward import to_ir
from graphopt.operators import of


def inference_model(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in inference mode, without initializers that nothing reads.

    Args:
        proto: A forward model, which is left as it is.

    Raises:
        ValueError: It draws a random mask that is no Dropout.
    """
    model = to_ir(proto)
    own = onnx.ModelProto()
    try:
        own.CopyFrom(ir.to_proto(model) if to_inference(model) else proto)
    except ValueError as error:
        raise ValueError(f"{error}; training=True exports it in the mode that it has") from None
    read = {value for node in model.graph.all_nodes() for value in node.inputs}
    read.update(model.graph.outputs)
    unread = {n for n, value in model.graph.initializers.items() if value not in read}
    kept = [tensor for tensor in own.graph.initializer if tensor.name not in unread]
    del own.graph.initializer[:]
    own.graph.initializer.extend(kept)
    return own


def to_inference(model: ir.Model) -> bool:
    """Bring a model into inference mode; whether something has changed.

    Raises:
        ValueError: It draws a random mask that is no Dropout.
    """
    if not _may_be_training(model):
        return False
    passes.InlinePass()(model)  # in which parameters are initializers
    changed = False
    for node in list(model.graph.all_nodes()):
        if (infer := of(node).infer) is not None:
            changed |= infer(node)
    changed |= remove_written_dropout(model.graph)
    if changed:
        passes.RemoveUnusedNodesPass()(model)
    return changed


def _may_be_training(model: ir.Model) -> bool:
    graphs = (model.graph, *(function.graph for function in model.functions.values()))
    nodes = [node for graph in graphs for node in graph.all_nodes()]
    return any(of(node).infer is not None or of(node).is_random for node in nodes)
