"""Rewriting a forward model so that ONNX Runtime's builder can differentiate it, exactly.

Each rewrite leaves what the model computes as it is, save one: batch normalization whose scale or
bias is trained normalizes by the statistics of the batch, as training means.
"""

from collections.abc import Collection

import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes import common as passes

from graphopt.builder import GraphBuilder
from graphopt.gradients._average_pool import rewrite_average_pool
from graphopt.gradients._batch_normalization import rewrite_batch_normalization
from graphopt.gradients._padding import write_out_pads
from graphopt.gradients._rewrite import add_outputs

# Older operators lack gradients or what the update needs; newer ones onnxruntime-training.
_MIN_OPSET, _MAX_OPSET = 17, 21


def prepare(proto: onnx.ModelProto, trained: Collection[str]) -> tuple[ir.Model, list[str]]:
    """A copy of the model that can be differentiated, and the names of its running statistics.

    Args:
        proto: The forward model, which is left as it is.
        trained: The names of the trained parameters.

    Raises:
        ValueError: The model cannot be brought to an opset that the builder knows, or an operator
            cannot be rewritten.
    """
    proto = _convert_opset(proto)
    model = ir.from_proto(proto)
    passes.InlinePass()(model)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))
    op = GraphBuilder(model.graph)
    statistics: list[str] = []
    for node in list(model.graph):
        if node.domain != "":
            continue
        match node.op_type:
            case "BatchNormalization":
                statistics += rewrite_batch_normalization(op, node, trained)
            case "LayerNormalization":
                add_outputs(op, node, 3)
            case "Dropout" | "SoftmaxCrossEntropyLoss":
                add_outputs(op, node, 2)
            case "AveragePool":
                write_out_pads(node)
                rewrite_average_pool(op, node)
            case "Conv" | "ConvTranspose" | "MaxPool":
                write_out_pads(node)
    model.graph.sort()
    return model, statistics


def _convert_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    opset = next((entry.version for entry in proto.opset_import if not entry.domain), 0)
    target = min(max(opset, _MIN_OPSET), _MAX_OPSET)
    if opset == target:
        return proto
    try:
        return version_converter.convert_version(proto, target)
    except Exception as error:  # noqa: BLE001 - whatever the converter's C++ side gives
        raise ValueError(
            f"the model has opset {opset}, a training graph needs {_MIN_OPSET} to {_MAX_OPSET}, "
            f"and converting it failed: {error}; export the model again with opset {target}"
        ) from None
