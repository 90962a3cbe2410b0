"""Shapes and dtypes of the values of a graph, as far as shape inference finds them."""

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir

_LARGE = 1024  # elements; the values of such an initializer say nothing about shapes
_UNKNOWN = "unk__"  # how shape inference begins the names of sizes that it does not know


def infer_shapes(model: ir.Model, *, symbols: bool = True) -> None:
    """Set the shapes and dtypes of a model's values.

    What follows from the inputs is set, whatever the model declares: a declaration may be older
    than its inputs. Only a size that does not follow is taken from it.

    Args:
        model: Changed in place.
        symbols: Whether symbolic sizes may be taken from declarations too. Exporters use one for
            sizes that differ.

    Raises:
        ValueError: The model contradicts itself.
    """
    declared = {
        name: value.shape
        for name, value in _values(model.graph).items()
        if value.shape is not None and value.producer() is not None
    }
    with _without_large_initializers(model.graph):
        proto = ir.to_proto(model)
    _forget(proto.graph)
    inferred = _inferred(proto)
    additions = _missing(inferred, declared, symbols)
    if additions:
        for output in proto.graph.output:
            if output.name in additions:
                output.CopyFrom(additions.pop(output.name))
        proto.graph.value_info.extend(additions.values())
        inferred = _inferred(proto)
    values = _values(model.graph)
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        value, found = values.get(info.name), ir.from_proto(info)
        if value is not None and value.producer() is not None and found.type is not None:
            value.type = found.type
            value.shape = found.shape


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    return {str(value.name): value for value in ir.convenience.create_value_mapping(graph).values()}


def _forget(graph: onnx.GraphProto) -> None:
    """Clear what the graph declares of its inner values, and the shapes of its outputs."""
    del graph.value_info[:]
    stored = {tensor.name for tensor in graph.initializer}
    for output in graph.output:
        if output.type.HasField("tensor_type") and output.name not in stored:
            output.type.tensor_type.ClearField("shape")


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(f"the model contradicts itself: {error}") from None


def _missing(
    inferred: onnx.ModelProto, declared: dict[str, ir.Shape], symbols: bool
) -> dict[str, onnx.ValueInfoProto]:
    """The declarations of values with sizes that inference does not find, as far as it agrees."""

    def given(size: int | ir.SymbolicDim) -> int | str | None:
        if isinstance(size, int):
            return size
        return size.value if symbols else None

    found = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
    additions = {}
    for name, shape in declared.items():
        tensor = found[name].type.tensor_type if name in found else None
        if tensor is None or not tensor.elem_type:
            continue
        if not tensor.HasField("shape"):
            sizes = [given(size) for size in shape]
            additions[name] = onnx.helper.make_tensor_value_info(name, tensor.elem_type, sizes)
            continue
        dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param
                for dim in tensor.shape.dim]  # fmt: skip
        if len(dims) != len(shape):
            continue
        merged = [
            (given(size) if _is_unknown(dim) else None) or dim or None
            for dim, size in zip(dims, shape, strict=True)
        ]
        if merged != [dim or None for dim in dims]:
            additions[name] = onnx.helper.make_tensor_value_info(name, tensor.elem_type, merged)
    return additions


def _is_unknown(dim: int | str) -> bool:
    return isinstance(dim, str) and (not dim or dim.startswith(_UNKNOWN))


@contextmanager
def _without_large_initializers(graph: ir.Graph) -> Iterator[None]:
    """Let large initializers be inputs meanwhile: copying their values takes long."""
    large = [
        value
        for value in graph.initializers.values()
        if value.const_value is not None and value.const_value.size > _LARGE
    ]
    inputs, tensors = list(graph.inputs), {value: value.const_value for value in large}
    initializers = dict(graph.initializers)
    for value in large:
        tensor = tensors[value]
        assert tensor is not None
        value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape.numpy())
        del graph.initializers[str(value.name)]
        if value not in graph.inputs:
            graph.inputs.append(value)
    try:
        yield
    finally:
        graph.inputs[:] = inputs
        graph.initializers.clear()
        for value in initializers.values():
            graph.register_initializer(value)
