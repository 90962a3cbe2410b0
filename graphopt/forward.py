"""Reading the forward model that a user hands over."""

import math
import os
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

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
    return ir.from_proto(read_proto(model))


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
        return ir.to_proto(model)
    if isinstance(model, str | os.PathLike):
        path = existing_file(model)
        try:
            proto = onnx.load(path)
        except (DecodeError, ValueError) as error:
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
