"""Reading the forward model that a user hands over."""

import math
import os
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt._files import PathLike, existing_file

_ITEM_SIZES: dict[int, int] = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
    onnx.TensorProto.DOUBLE: 8,
    onnx.TensorProto.INT32: 4,
    onnx.TensorProto.INT64: 8,
}

ForwardModel = PathLike | onnx.ModelProto | ir.Model


def read_forward(model: ForwardModel) -> ir.Model:
    """The model as `onnx_ir.Model`; what is handed over is never changed."""
    if isinstance(model, ir.Model):
        return model
    return to_ir(read_proto(model))


def to_ir(proto: onnx.ModelProto) -> ir.Model:
    """The model as `onnx_ir.Model`.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return ir.from_proto(proto)
    except Exception as error:  # noqa: BLE001 - whatever onnx-ir finds wrong
        raise ValueError(f"the model is damaged: {error}") from None


def read_proto(model: ForwardModel) -> onnx.ModelProto:
    """The model as ``onnx.ModelProto``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an ONNX model.
        TypeError: ``model`` is neither a path nor a model.
    """
    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, ir.Model):
        return ir.to_proto(ir.external_data.load_to_model(model.clone()))
    if isinstance(model, str | os.PathLike):
        path = existing_file(model)
        try:
            proto = onnx.load(path, format="protobuf")
        except Exception as error:  # noqa: BLE001 - protobuf's, onnx's and the file system's
            raise ValueError(f"'{path}' is not an ONNX model: {error}") from None
        if not proto.graph.node or not proto.opset_import:
            raise ValueError(f"'{path}' is not an ONNX model: it holds no graph")
        for tensor in proto.graph.initializer:
            _check_size(path, tensor)
        return proto
    raise TypeError(
        f"model: got {type(model).__name__}, "
        "expected a path, an onnx.ModelProto or an onnx_ir.Model"
    )


def _check_size(path: Path, tensor: onnx.TensorProto) -> None:
    """Refuse a tensor that has not the bytes of its shape, before something reads past its end."""
    if not tensor.HasField("raw_data") or tensor.data_type not in _ITEM_SIZES:
        return
    expected = math.prod(tensor.dims) * _ITEM_SIZES[tensor.data_type]
    if len(tensor.raw_data) != expected:
        raise ValueError(
            f"'{path}' is damaged: initializer '{tensor.name}' of shape {list(tensor.dims)} has "
            f"{len(tensor.raw_data)} bytes, expected {expected}"
        )
