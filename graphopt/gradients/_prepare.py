"""Rewriting a forward model so that it can be differentiated, exactly.

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
from graphopt.gradients._batch_normalization import (
    RunningStatistic,
    rewrite_batch_normalization,
)
from graphopt.gradients._constants import propagate_constants
from graphopt.gradients._cross_entropy import rewrite_cross_entropy
from graphopt.gradients._dropout import rewrite_dropout
from graphopt.gradients._exporter import check_export
from graphopt.gradients._inline import inline_schema_functions
from graphopt.gradients._recurrent import rewrite_recurrent
from graphopt.gradients._rewrite import describe
from graphopt.gradients._shapes import infer_shapes
from graphopt.gradients.backward import RULES, ZERO_GRADIENT

# Older operators are not what the rules know; newer ones are not in the runtimes of many users.
MIN_OPSET, MAX_OPSET = 17, 21
_MAX_IR_VERSION = 10  # the newest that ONNX Runtime 1.19 reads


def prepare(
    proto: onnx.ModelProto, trained: Collection[str]
) -> tuple[ir.Model, list[RunningStatistic]]:
    """A copy of the model that can be differentiated, and its running statistics.

    Args:
        proto: The forward model, which is left as it is.
        trained: The names of the trained parameters.

    Raises:
        ValueError: The model cannot be brought to an opset that the rules know, or an operator
            cannot be rewritten.
    """
    known = RULES.keys() | ZERO_GRADIENT | {"LSTM", "GRU", "RNN"}
    model = open_model(proto, known, trained)
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
            case "SoftmaxCrossEntropyLoss" | "NegativeLogLikelihoodLoss":
                rewrite_cross_entropy(op, node)
            case "LSTM" | "GRU" | "RNN":
                rewrite_recurrent(op, node)
    model.graph.sort()
    check_trained(model.graph, trained, statistics)
    return model, statistics


def open_model(
    proto: onnx.ModelProto, known: Collection[str], trained: Collection[str], least: int = MIN_OPSET
) -> ir.Model:
    """A model without functions, at an opset of ours, whose shapes are known.

    Args:
        proto: The forward model.
        known: Operators that stay as they are; others that ONNX defines by simpler ones are
            written out.
        trained: The names of the trained parameters.
        least: The opset that the model has at least.
    """
    check_export(proto, set(trained))
    proto = convert_opset(proto, least, MAX_OPSET)
    model = to_ir(inline_schema_functions(proto, known))
    passes.InlinePass()(model)
    passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = min(model.ir_version, _MAX_IR_VERSION)
    infer_shapes(model)
    propagate_constants(model.graph, trained)
    return model


def check_trained(
    graph: ir.Graph, trained: Collection[str], statistics: Collection[RunningStatistic]
) -> None:
    """Refuse parameters that cannot be trained because of where they are read."""
    for node in graph.all_nodes():
        if node.graph is graph:
            continue
        for value in node.inputs:
            if value is not None and value.graph is graph and value.name in trained:
                raise ValueError(
                    f"parameter '{value.name}' is read inside a branch or loop ({describe(node)}), "
                    "where it has no gradient; leave it out of the optimizer"
                )
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
