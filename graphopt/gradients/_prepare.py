"""Rewriting a forward model so that ONNX Runtime's builder can differentiate it, exactly.

Each rewrite leaves what the model computes as it is, save one: batch normalization whose scale or
bias is trained normalizes by the statistics of the batch, as training means.
"""

from collections import Counter
from collections.abc import Collection

import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes import common as passes

from graphopt.builder import GraphBuilder
from graphopt.forward import to_ir
from graphopt.gradients._average_pool import rewrite_average_pool
from graphopt.gradients._batch_normalization import (
    RunningStatistic,
    rewrite_batch_normalization,
)
from graphopt.gradients._cross_entropy import rewrite_cross_entropy
from graphopt.gradients._dropout import rewrite_dropout
from graphopt.gradients._layer_normalization import rewrite_layer_normalization
from graphopt.gradients._matmul import rewrite_matmul
from graphopt.gradients._padding import write_out_pads
from graphopt.gradients._rewrite import describe
from graphopt.gradients._transpose import rewrite_transpose

# Older operators lack gradients or what the update needs; newer ones onnxruntime-training.
_MIN_OPSET, _MAX_OPSET = 17, 21


def prepare(
    proto: onnx.ModelProto, trained: Collection[str]
) -> tuple[ir.Model, list[RunningStatistic]]:
    """A copy of the model that can be differentiated, and its running statistics.

    Args:
        proto: The forward model, which is left as it is.
        trained: The names of the trained parameters.

    Raises:
        ValueError: The model cannot be brought to an opset that the builder knows, or an operator
            cannot be rewritten.
    """
    proto = convert_opset(proto, _MIN_OPSET, _MAX_OPSET)
    model = to_ir(proto)
    passes.InlinePass()(model)
    passes.RemoveInitializersFromInputsPass()(model)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))
    op = GraphBuilder(model.graph)
    statistics: list[RunningStatistic] = []
    for node in list(model.graph):
        if node.domain != "":
            continue
        match node.op_type:
            case "BatchNormalization":
                statistics += rewrite_batch_normalization(op, node, trained)
            case "Dropout":
                rewrite_dropout(op, node)
            case "LayerNormalization":
                rewrite_layer_normalization(op, node)
            case "MatMul":
                rewrite_matmul(op, node)
            case "SoftmaxCrossEntropyLoss":
                rewrite_cross_entropy(op, node)
            case "Transpose":
                rewrite_transpose(node)
            case "AveragePool":
                write_out_pads(node)
                rewrite_average_pool(op, node)
            case "Conv" | "ConvTranspose" | "MaxPool":
                write_out_pads(node)
    model.graph.sort()
    _check_subgraphs(model.graph, trained)
    _check_statistics(statistics, trained)
    return model, statistics


def _check_subgraphs(graph: ir.Graph, trained: Collection[str]) -> None:
    for node in graph.all_nodes():
        if node.graph is graph:
            continue
        for value in node.inputs:
            if value is not None and value.graph is graph and value.name in trained:
                raise ValueError(
                    f"parameter '{value.name}' is read inside a branch or loop ({describe(node)}), "
                    "where it has no gradient; leave it out of the optimizer"
                )


def _check_statistics(statistics: list[RunningStatistic], trained: Collection[str]) -> None:
    for name, count in Counter(statistic.name for statistic in statistics).items():
        if name in trained:
            raise ValueError(
                f"parameter '{name}' is a running statistic of batch normalization, which moves "
                "by itself; leave it out of the optimizer"
            )
        if count > 1:
            raise ValueError(
                f"'{name}' is the running statistic of two batch normalizations in training mode; "
                "give each its own"
            )


def convert_opset(proto: onnx.ModelProto, least: int, most: int) -> onnx.ModelProto:
    """The model at an opset of this range.

    Raises:
        ValueError: It cannot be converted.
    """
    opset = next((entry.version for entry in proto.opset_import if not entry.domain), 0)
    target = min(max(opset, least), most)
    if opset == target:
        return proto
    try:
        return version_converter.convert_version(proto, target)
    except Exception as error:  # noqa: BLE001 - whatever the converter's C++ side gives
        raise ValueError(
            f"the model has opset {opset}, a training graph needs {least} to {most}, "
            f"and converting it failed: {error}; export the model again with opset {target}"
        ) from None
