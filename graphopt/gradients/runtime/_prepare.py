"""Rewriting a forward model so that ONNX Runtime's builder can differentiate it, exactly."""

from collections.abc import Collection, Sequence

import onnx
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._open import open_model
from graphopt.gradients._prepare import rewrite, rewrite_unrolled, rewritten
from graphopt.gradients.runtime import _rewrites
from graphopt.marks import STOP_GRADIENT
from graphopt.operators import name_of
from graphopt.operators.rewriting import RunningStatistic, add_outputs, describe
from graphopt.versions import MIN_OPSET

# Operators that ONNX defines by simpler ones, for which the builder has no gradient.
_WITHOUT_GRADIENT = frozenset(
    (
        *("CastLike", "Celu", "Elu", "GroupNormalization", "HardSigmoid", "HardSwish", "Mish"),
        *("MeanVarianceNormalization", "NegativeLogLikelihoodLoss", "PRelu", "ReduceL1"),
        *("ReduceLogSum", "ReduceSumSquare", "Selu", "Shrink", "Softplus", "Softsign"),
        "ThresholdedRelu",
    )
)


def prepare_for_builder(
    proto: onnx.ModelProto, trained: Collection[str], outputs: Collection[str] | None = None
) -> tuple[ir.Model, list[RunningStatistic]]:
    """As `prepare`, for the builder of onnxruntime-training.

    Raises:
        ValueError: As `prepare`, or a node stops gradients, which the builder cannot.
    """
    known = {node.op_type for node in proto.graph.node} - _WITHOUT_GRADIENT
    # HardSigmoid and others have a definition from opset 18 on.
    undefined = any(node.op_type in _WITHOUT_GRADIENT for node in proto.graph.node)
    model = open_model(proto, known, trained, outputs, least=18 if undefined else MIN_OPSET)
    _check_trained(model.graph, trained)
    _replace_casts(model.graph)
    for node in model.graph.all_nodes():
        # Also one that no parameter lies before: the runtime makes it part of a product.
        if name_of(node) == "Transpose" and node.inputs[0] is not None and node.inputs[0].shape:
            _rewrites.transpose(node)
        if STOP_GRADIENT in node.metadata_props:
            raise ValueError(
                f"{describe(node)}: portable=False cannot stop the gradient there "
                f"({node.metadata_props[STOP_GRADIENT]}); leave portable out"
            )
    return rewritten(model, trained, outputs, _rewrite)


def _replace_casts(graph: ir.Graph) -> None:
    """Write numbers that a CastLike casts as what they are then."""
    op = GraphBuilder(graph)
    for node in list(graph):
        value = node.outputs[0]
        known = value.const_value
        if name_of(node) == "CastLike" and known is not None and not value.is_graph_output():
            value.replace_all_uses_with(op.constant(known.numpy()))
            graph.remove(node, safe=True)


def _check_trained(graph: ir.Graph, trained: Collection[str]) -> None:
    """Refuse parameters that the builder does not find where they are read."""
    for node in graph.all_nodes():
        if node.graph is graph:
            continue
        for value in node.inputs:
            if value is not None and value.graph is graph and value.name in trained:
                raise ValueError(
                    f"parameter '{value.name}' is read inside a branch or loop ({describe(node)}), "
                    "where onnxruntime-training gives it no gradient; leave portable=False out, or "
                    "the parameter out of the optimizer"
                )


def _rewrite(
    op: GraphBuilder, node: ir.Node, trained: Collection[str]
) -> Sequence[RunningStatistic] | None:
    match name_of(node):
        case "BatchNormalization":
            return _rewrites.batch_normalization(op, node, trained)
        case "LayerNormalization":
            _rewrites.layer_normalization(op, node)
        case "MatMul":
            _rewrites.matmul(node)
        case "SoftmaxCrossEntropyLoss":
            rewrite(op, node, trained)
            add_outputs(op, node, 2)  # which the gradient reads
        case "Transpose":
            _rewrites.transpose(node)
        case "AveragePool":
            _rewrites.write_out_pads(node)
            _rewrites.average_pool(op, node)
        case "Conv" | "ConvTranspose" | "MaxPool":
            _rewrites.write_out_pads(node)
        case _:
            return rewrite_unrolled(op, node, trained)
    return None
