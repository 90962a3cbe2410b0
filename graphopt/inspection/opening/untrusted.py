"""Opening a model that nobody vouches for."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import onnx
import onnx_ir as ir
from onnx import TensorProto

from graphopt._files import existing_file
from graphopt.forward import ForwardModel
from graphopt.soundness.file import read_model
from graphopt.soundness.model import check_model
from graphopt.soundness.nodes import Place, tensors, types
from graphopt.soundness.scopes import sort_nodes
from graphopt.soundness.tensors import open_dimensions


def opened(model: "ForwardModel | Any") -> onnx.ModelProto:
    """A model that can be relied on, or an error that says what is wrong with it.

    What is checked stands at `check_model`. What is put right, in a copy where the model is not
    from a file: nodes are brought into an order in which they can run; a dimension -1 becomes an
    open one; external data is never read, and its tensors no longer say that they have any, so that
    nothing else reads it either. They keep their shape.

    Args:
        model: A path, an ``onnx.ModelProto``, an ``onnx_ir.Model``, or what has one of these two
            as its ``model``, such as a `TrainingGraph`.

    Returns:
        The model; what was handed over is never changed, but may be what is returned.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: ``model`` is none of these.
        ValueError: It is damaged, or no ONNX model; the error names the file.

    Example:
        >>> opened("train.onnx").graph.node[0].op_type  # doctest: +SKIP
        'Conv'
    """
    if isinstance(model, str | os.PathLike):
        path = existing_file(model)
        try:
            return _sound(read_model(path), own=True)
        except ValueError as error:
            raise ValueError(f"'{path}' is no readable ONNX model: {error}") from None
    proto = _proto(model)
    try:
        return _sound(proto, own=not isinstance(model, onnx.ModelProto))
    except ValueError as error:
        raise ValueError(f"the model is damaged: {error}") from None


def _proto(model: Any) -> onnx.ModelProto:
    """What is behind a model in memory."""
    inner = (
        model if isinstance(model, onnx.ModelProto | ir.Model) else getattr(model, "model", None)
    )
    if isinstance(inner, onnx.ModelProto):
        return inner
    if not isinstance(inner, ir.Model):
        raise TypeError(
            f"model: got {type(model).__name__}, expected a path, a TrainingGraph, an "
            "onnx.ModelProto or an onnx_ir.Model"
        )
    try:
        return ir.to_proto(inner)  # which leaves external data where it is
    except Exception as error:  # noqa: BLE001 - whatever onnx-ir finds wrong
        raise ValueError(f"the model is damaged: {error}") from None


def _sound(model: onnx.ModelProto, *, own: bool) -> onnx.ModelProto:
    """The model, checked and put right; a copy of it if that changes something not our own."""
    found, in_order = check_model(model)
    if in_order and next(_repairs(found), None) is None:
        return model
    if not own:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return _sound(copy, own=True)
    for repair in _repairs(found):
        repair()
    if not in_order:
        sort_nodes(model)
    return model


def _repairs(found: Iterable[Place]) -> Iterator[Callable[[], object]]:
    """What is to be put right in types and tensors."""
    for place in found:
        for kind, _ in types(place):
            for dimension in open_dimensions(kind):
                yield partial(dimension.ClearField, "dim_value")
        for tensor, _ in tensors(place):
            if tensor.data_location == TensorProto.EXTERNAL:
                yield partial(tensor.ClearField, "data_location")
