"""Opening a model that nobody vouches for."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx import TensorProto

from graphopt._files import existing_file
from graphopt._words import shown, size
from graphopt.forward import ForwardModel
from graphopt.soundness.functions import check_functions
from graphopt.soundness.names import check_name
from graphopt.soundness.nodes import Place, check_place, places, tensors, types
from graphopt.soundness.scopes import check_scopes, sort_nodes
from graphopt.soundness.tensors import open_dimensions
from graphopt.soundness.wire import check_bytes

_TWO_GIB = 2**31
_BEGIN = 512  # bytes of a file that tell what it is, if it is no model
_SAFETENSORS_HEADER = 8


def opened(model: "ForwardModel | Any") -> onnx.ModelProto:
    """A model that can be relied on, or an error that says what is wrong with it.

    What is checked: tensors have dimensions, element types and bytes that fit each other; each
    name is given once where it is seen, and before it is read; attributes hold what their type
    says; functions do not call themselves; branches, loops and calls
    have as many inputs and outputs as what they run; there are less than half a million
    nodes, and two million with all functions written out.

    What is put right, in a copy where the model is not from a file: nodes are brought into an order
    in which they can run; a dimension -1 becomes an open one; external data is never read, and its
    tensors no longer say that they have any, so that nothing else reads it either. They keep their
    shape.

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
            return _sound(_read(path), own=True)
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


def _read(path: Path) -> onnx.ModelProto:
    """The content of a file, not yet checked."""
    length = path.stat().st_size
    if length >= _TWO_GIB:
        raise ValueError(f"it has {size(length)}, and an ONNX file holds less than 2 GiB")
    with path.open("rb") as file:
        data = file.read(length)
    if other := _other_kind(data):
        raise ValueError(other)
    check_bytes(data)
    try:
        return onnx.load_model_from_string(data)
    except Exception as error:  # noqa: BLE001 - protobuf's, which depends on its implementation
        raise ValueError(f"it is damaged: {error}") from None


def _other_kind(data: bytes) -> str | None:
    """What a file is, if it begins like something else that people have."""
    begin = data[:_BEGIN]
    if not begin:
        return "it is empty"
    if begin[4:8] == b"ODTC":
        return "it is a checkpoint of on-device training"
    if begin[4:8] == b"ORTM":
        return (
            "it is a model in ONNX Runtime's own format (.ort); inspect the .onnx file that it was "
            "made from"
        )
    header = int.from_bytes(begin[:_SAFETENSORS_HEADER], "little")
    if begin[_SAFETENSORS_HEADER : _SAFETENSORS_HEADER + 2] == b'{"' and header < len(data):
        return "it is a safetensors file, such as a checkpoint of a session"
    if begin.startswith(b"PK\x03\x04"):
        return "it is a ZIP archive, such as a model or checkpoint of PyTorch, or arrays of NumPy"
    if begin.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    if _is_text(begin):
        return "it is text, expected ONNX's binary format"
    return None


def _is_text(begin: bytes) -> bool:
    try:
        text = begin.decode("ascii")
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\t\r\n" for letter in text)


def _sound(model: onnx.ModelProto, *, own: bool) -> onnx.ModelProto:
    """The model, checked and put right; a copy of it if that changes something not our own."""
    _check_model(model)
    found = list(places(model))
    for place in found:
        check_place(place)
    check_functions(model, found)
    in_order = check_scopes(model)
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


def _check_model(model: onnx.ModelProto) -> None:
    if not model.HasField("graph") or not model.graph.node:
        raise ValueError("it holds no graph")
    if model.ir_version < 1:
        raise ValueError(f"ir_version: got {model.ir_version}, expected 1 or more")
    if not model.opset_import:
        raise ValueError("it has no opset_import, so what its operators mean is not known")
    of_functions = (entry for function in model.functions for entry in function.opset_import)
    for entry in (*model.opset_import, *of_functions):
        check_name(entry.domain, "a domain in opset_import")
        if entry.version < 1:
            raise ValueError(
                f"opset_import: got version {entry.version} of the domain "
                f"'{shown(entry.domain)}', expected 1 or more"
            )
    check_name(model.producer_name, "its producer")
    texts = [*model.metadata_props, *model.graph.metadata_props]
    for info in model.training_info:
        texts += [*info.update_binding, *info.initialization_binding]
    for text in texts:
        if not isinstance(text.key, str) or not isinstance(text.value, str):
            raise ValueError(f"the text of '{shown(text.key)}' is not UTF-8")
    for value in model.graph.input:
        if value.type.WhichOneof("value") is None:
            raise ValueError(f"input '{shown(value.name)}' of the graph has no type")


def _repairs(found: Iterable[Place]) -> Iterator[Callable[[], object]]:
    """What is to be put right in types and tensors."""
    for place in found:
        for kind, _ in types(place):
            for dimension in open_dimensions(kind):
                yield partial(dimension.ClearField, "dim_value")
        for tensor, _ in tensors(place):
            if tensor.data_location == TensorProto.EXTERNAL:
                yield partial(tensor.ClearField, "data_location")
