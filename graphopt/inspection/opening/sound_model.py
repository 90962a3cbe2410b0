"""A sound model in memory: onnx_ir, and beside it what that does not hold of an ONNX file.

Until it has been checked, a model is its proto: what is not sound may not even be an
``onnx_ir.Model``, and errors speak of what stands in the file. From here on no one sees a proto.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx import AttributeProto, TensorProto, TypeProto

from graphopt.forward import to_ir
from graphopt.inspection.opening.untrusted import opened
from graphopt.large_models import size_of
from graphopt.shapes.engine import Shapes
from graphopt.soundness.errors import about
from graphopt.soundness.nodes import attributes, places, types

_KIND = "graphopt.kind"
_SPARSE = {AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS}


@dataclass(frozen=True)
class SoundModel:
    """A model that can be relied on.

    Attributes:
        model: The model.
        training: What it says of training, which onnx_ir leaves out.
        name: The path of its file; of a model in memory, the name of its graph.
        bytes: The size of the file, or of the one that would be written.
        files: Its file, if it has one.
    """

    model: ir.Model
    training: tuple[onnx.TrainingInfoProto, ...]
    name: str
    bytes: int
    files: tuple[Path, ...] = ()
    _shapes: dict[frozenset[tuple[str, int]] | None, Shapes] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def shapes(self, sizes: Mapping[str, int] | None = None) -> Shapes:
        """The shapes of all values, which are inferred once.

        Args:
            sizes: What open dimensions are taken to be, by name; None: they keep their names.
        """
        key = None if sizes is None else frozenset(sizes.items())
        if key not in self._shapes:
            self._shapes[key] = Shapes(self.model, sizes)
        return self._shapes[key]


def sound_model(model: Any) -> SoundModel:
    """Open a model as `opened` does, once for everything that looks at it.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: ``model`` is no model.
        ValueError: It is damaged, or no ONNX model; the error names the file.
    """
    proto = opened(model)
    with about(model):
        in_memory = _in_memory(proto)
    if isinstance(model, str | os.PathLike):
        size = Path(model).stat().st_size
        name, files = os.fspath(model), (Path(model),)
        return SoundModel(in_memory, tuple(proto.training_info), name, size, files)
    return SoundModel(in_memory, tuple(proto.training_info), proto.graph.name, size_of(proto))


def kind_of(value: ir.Value) -> str:
    """What an input or output of a graph is: "tensor", "sequence", "map", or "unknown"."""
    if value.type is None:
        return str(value.meta.get(_KIND, "unknown"))
    kinds = {ir.TensorType: "tensor", ir.SequenceType: "sequence", ir.OptionalType: "optional"}
    return kinds.get(type(value.type), "sparse_tensor")


def _in_memory(proto: onnx.ModelProto) -> ir.Model:
    """The model; the values of its tensors stay where they are until someone wants them."""
    try:
        if proto.graph.sparse_initializer:
            raise NotImplementedError
        model = to_ir(proto)
    except (NotImplementedError, ValueError):  # onnx_ir does not say in one way what it lacks
        model = to_ir(_without_what_is_not_held(proto))
    values = (*model.graph.inputs, *model.graph.outputs)
    for value, declared in zip(values, (*proto.graph.input, *proto.graph.output), strict=True):
        if value.type is None and (kind := declared.type.WhichOneof("value")):
            value.meta[_KIND] = kind.removesuffix("_type")
    return model


def _without_what_is_not_held(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which sparse tensors have shapes only, and types are left out that are no tensor's.

    Also texts that are not UTF-8. Nothing that is read later depends on these.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for place in places(copy):
        for kind, _ in types(place):
            if not _is_held(kind):
                kind.Clear()
        if isinstance(place.body, onnx.GraphProto):
            for sparse in place.body.sparse_initializer:
                values = sparse.values
                place.body.initializer.append(
                    TensorProto(name=values.name, data_type=values.data_type, dims=sparse.dims)
                )
        for attribute, _ in attributes(place):
            if attribute.type in _SPARSE or not all(map(_is_text, attribute.strings)):
                attribute.CopyFrom(AttributeProto(name=attribute.name))
    return copy


def _is_held(kind: TypeProto) -> bool:
    """Whether onnx_ir has a type: one of tensors, or of sequences of such."""
    while (name := kind.WhichOneof("value")) in ("sequence_type", "optional_type"):
        kind = getattr(kind, name).elem_type
    return name in ("tensor_type", "sparse_tensor_type", None)


def _is_text(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
