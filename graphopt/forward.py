"""Reading the forward model that a user hands over."""

import os

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from graphopt._files import PathLike, existing_file

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
        return proto
    raise TypeError(
        f"model: got {type(model).__name__}, "
        "expected a path, an onnx.ModelProto or an onnx_ir.Model"
    )
