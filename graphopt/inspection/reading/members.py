"""Which parameters a bucket holds, and the gradient of each.

Where a bucket is not in its parameters' shapes, the graph takes them out of it before anything
reads them: a Split, and a Reshape for each that is not 1-D. Their gradients are joined in the same
order, each of them flattened, those that are 1-D aside.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphopt.inspection.facts import ParameterFacts
from graphopt.inspection.reading.dataflow import Operation, Value
from graphopt.inspection.reading.update import Update, gradient_of
from graphopt.manifest import BucketEntry

_GRADIENT = "_grad"
_SHAPED = "/shaped"


@dataclass(frozen=True)
class Member:
    """A parameter of a bucket.

    Attributes:
        name: Its name.
        shape: Its dimensions.
        gradient: Its gradient, as it is joined with the others.
    """

    name: str
    shape: tuple[int, ...]
    gradient: Value | None


def members(
    bucket: Value, update: Update, listed: Mapping[str, tuple[int, ...]] | None = None
) -> list[Member]:
    """The parameters that an input of the graph holds, in order.

    Args:
        bucket: The input.
        update: Its update.
        listed: The shapes of its parameters, by name and in order, as the metadata lists them. They
            are taken for those that have no name in the graph, if numbers and sizes agree.
    """
    return _as_listed(_by_nodes(bucket, update), listed or {})


def _as_listed(found: list[Member], listed: Mapping[str, tuple[int, ...]]) -> list[Member]:
    names = {member.name for member in found}
    agree = len(found) == len(listed) and all(
        math.prod(member.shape) == math.prod(shape)
        for member, shape in zip(found, listed.values(), strict=True)
    )
    if not agree:
        return found
    return [
        member if member.name in listed or name in names else Member(name, shape, member.gradient)
        for member, (name, shape) in zip(found, listed.items(), strict=True)
    ]


def _by_nodes(bucket: Value, update: Update) -> list[Member]:
    gradients = joined_gradients(update)
    parts = _parts(bucket)
    if len(parts) == len(gradients) > 1:
        pairs = zip(parts, gradients, strict=True)
        return [_of_part(part, gradient) for part, gradient in pairs]
    if len(gradients) > 1 and all(_is_named(gradient) for gradient in gradients):
        return [
            Member(
                _named_by_gradient(gradient),
                gradient_of(gradient).value.static_shape or (),
                gradient,
            )
            for gradient in gradients
        ]
    gradient = gradients[0] if len(gradients) == 1 else update.value("gradient")
    shape = () if gradient is None else _own_shape(bucket, update, gradient)
    return [Member(bucket.name, shape, gradient)]


def joined_gradients(update: Update) -> list[Value]:
    """The gradients that are one after another in that of the bucket."""
    gradient = update.value("gradient")
    if gradient is None:
        return []
    operation = gradient.source.operation
    if operation is not None and operation.op_type == "Concat":
        return [operand for operand in operation.inputs if operand is not None]
    return [gradient]


def _parts(bucket: Value) -> list[Value]:
    """What a Split makes of a bucket."""
    waiting = [bucket]
    while waiting:
        value = waiting.pop()
        for reader in value.readers:
            if reader.op_type == "Split" and reader.inputs[0] is value:
                return reader.outputs
            if reader.op_type == "Reshape" and value is bucket and reader.outputs:
                waiting.append(reader.outputs[0])
    return []


def _of_part(part: Value, gradient: Value) -> Member:
    """A part by its gradient, which is called after it; by itself, where that is another."""
    shape = gradient_of(gradient).value.static_shape
    if _is_named(gradient) and shape is not None and math.prod(shape) == _size(part):
        return Member(_named_by_gradient(gradient), shape, gradient)
    reshape = None if _is_flat(gradient) else _reshape(part)
    if reshape is not None:
        return Member(reshape.outputs[0].name, _given_shape(reshape) or (), gradient)
    return Member(part.name, (_size(part),), gradient)


def _is_flat(gradient: Value) -> bool:
    """Whether a gradient is joined as it is: one that is flattened gets its shape when it runs."""
    operation = gradient.operation
    return (
        operation is None or operation.op_type != "Reshape" or _given_shape(operation) is not None
    )


def _reshape(value: Value) -> Operation | None:
    return next(
        (
            reader
            for reader in value.readers
            if reader.op_type == "Reshape" and _given_shape(reader) is not None and reader.outputs
        ),
        None,
    )


def _given_shape(reshape: Operation) -> tuple[int, ...] | None:
    """The shape that a Reshape is told by a constant."""
    operand = reshape.inputs[1] if len(reshape.inputs) > 1 else None
    array = None if operand is None else operand.constant
    if array is None or array.dtype.kind != "i" or array.ndim != 1:
        return None
    shape = tuple(array.tolist())
    return None if any(size < 0 for size in shape) else shape


def _size(part: Value) -> int:
    """The number of elements that a Split gives to a part."""
    split = part.operation
    operand = split.inputs[1] if split is not None and len(split.inputs) > 1 else None
    sizes = None if operand is None else operand.constant
    if split is None or sizes is None or sizes.dtype.kind != "i" or sizes.ndim != 1:
        return 0
    index = split.outputs.index(part)
    return max(int(sizes[index]), 0) if index < len(sizes) else 0


def _own_shape(bucket: Value, update: Update, gradient: Value) -> tuple[int, ...]:
    """The shape of a parameter that has a bucket to itself."""
    here = bucket.static_shape or ()
    made = update.new.operation
    if made is not None and made.op_type == "Reshape" and _given_shape(made) == here:
        return here  # it is carried in its own shape
    for reader in bucket.readers:
        shaped = reader.op_type == "Reshape" and reader.outputs[0].name == f"{bucket.name}{_SHAPED}"
        if shaped and (shape := _given_shape(reader)) is not None:
            return shape
    size, shape = math.prod(here), gradient_of(gradient).value.static_shape
    return shape if shape is not None and math.prod(shape) == size else here


def _is_named(gradient: Value) -> bool:
    """Whether a gradient is called after its parameter; a part of one is not."""
    return gradient_of(gradient).value.name.endswith(_GRADIENT)


def _named_by_gradient(gradient: Value) -> str:
    return gradient_of(gradient).value.name.removesuffix(_GRADIENT)


def listed(
    buckets: Sequence[BucketEntry], parameters: Sequence[ParameterFacts]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes of the parameters of each bucket, in order, as the metadata says them."""
    shapes = {parameter.name: parameter.shape for parameter in parameters}
    return {
        bucket.name: {name: shapes[name] for name in bucket.parameters if name in shapes}
        for bucket in buckets
    }
