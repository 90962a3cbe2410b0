"""Rewriting a forward model so that ONNX Runtime's builder can differentiate it, exactly."""

from collections.abc import Collection

import onnx
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.gradients._open import open_model
from graphopt.gradients._prepare import check_trained
from graphopt.gradients.runtime._average_pool import rewrite_average_pool
from graphopt.gradients.runtime._batch_normalization import rewrite_for_builder
from graphopt.gradients.runtime._layer_normalization import rewrite_layer_normalization
from graphopt.gradients.runtime._matmul import rewrite_matmul
from graphopt.gradients.runtime._padding import write_out_pads
from graphopt.gradients.runtime._transpose import rewrite_transpose
from graphopt.operators import name_of, of
from graphopt.operators.cross_entropy import rewrite_cross_entropy
from graphopt.operators.rewriting import RunningStatistic, add_outputs
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
    proto: onnx.ModelProto, trained: Collection[str]
) -> tuple[ir.Model, list[RunningStatistic]]:
    """As `prepare`, for the builder of onnxruntime-training."""
    known = {node.op_type for node in proto.graph.node} - _WITHOUT_GRADIENT
    # HardSigmoid and others have a definition from opset 18 on.
    undefined = any(node.op_type in _WITHOUT_GRADIENT for node in proto.graph.node)
    model = open_model(proto, known, trained, least=18 if undefined else MIN_OPSET)
    op = GraphBuilder(model.graph)
    statistics: list[RunningStatistic] = []
    for node in list(model.graph):
        match name_of(node):
            case "BatchNormalization":
                statistics += rewrite_for_builder(op, node, trained)
            case "LayerNormalization":
                rewrite_layer_normalization(op, node)
            case "MatMul":
                rewrite_matmul(op, node)
            case "SoftmaxCrossEntropyLoss":
                rewrite_cross_entropy(op, node, trained)
                add_outputs(op, node, 2)  # which the gradient reads
            case "Transpose":
                rewrite_transpose(node)
            case "AveragePool":
                write_out_pads(node)
                rewrite_average_pool(op, node)
            case "Conv" | "ConvTranspose" | "MaxPool":
                write_out_pads(node)
            case name:
                if (rewrite := of(name).rewrite) is not None:
                    rewrite(op, node, trained)
    model.graph.sort()
    check_trained(model.graph, trained, statistics)
    return model, statistics
