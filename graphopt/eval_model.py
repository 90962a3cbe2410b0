"""The forward model in inference mode with its loss, whose parameters are inputs.

It is what ONNX Runtime's ``EvalStep`` runs, and what `graphopt.evaluation` does.
"""

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from graphopt.builder import GraphBuilder
from graphopt.carried import Array
from graphopt.forward import to_ir
from graphopt.gradients import avoid_fusions, convert_opset, initializers_to_inputs
from graphopt.graphs import put_last
from graphopt.inference import to_inference
from graphopt.losses import LABELS, LossFunction, append_loss
from graphopt.versions import MAX_OPSET, MIN_OPSET, NEWEST_IR_VERSION


def eval_model(
    forward: onnx.ModelProto,
    loss: str | LossFunction | None,
    tensors: Mapping[str, Array],
    *,
    loss_output: str | None = None,
    labels: str = LABELS,
    outputs: Sequence[str] = (),
    newest_opset: int = MAX_OPSET,
) -> onnx.ModelProto:
    """The forward model in inference mode, with its loss.

    Args:
        forward: The forward model.
        loss: See `graphopt.training_graph`; without the loss scale. None: there is none.
        tensors: Everything in the checkpoint, in the order in which the training model has it.
            ONNX Runtime feeds all of it, in that order, so all of it are inputs here, too.
        loss_output: The output that the loss applies to.
        labels: The name of the input that a loss reads.
        outputs: Outputs of the forward model that are outputs of this one, after ``loss``.
        newest_opset: A model of a newer opset is converted to this one.
    """
    model = to_ir(convert_opset(forward, MIN_OPSET, newest_opset))
    model.ir_version = min(model.ir_version, NEWEST_IR_VERSION)
    passes.RemoveInitializersFromInputsPass()(model)
    to_inference(model)
    passes.RemoveUnusedNodesPass()(model)
    op = GraphBuilder(model.graph)
    values = [] if loss is None else [append_loss(op, loss, loss_output, labels)]
    avoid_fusions(op, model)
    kept = {value.name: value for value in model.graph.outputs}
    model.graph.outputs[:] = [*values, *(kept[name] for name in outputs)]
    initializers_to_inputs(model, [name for name in tensors if name in model.graph.initializers])
    inputs = {value.name for value in model.graph.inputs}
    for name, array in tensors.items():
        if name not in inputs:
            op.input(name, array.dtype, array.shape)
    put_last(model.graph.inputs, tensors)
    model.producer_name = "graphopt"
    return ir.to_proto(model)
