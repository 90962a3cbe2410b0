"""What a caller feeds, and what a caller gets."""

from collections.abc import Sequence

import onnx

from graphopt.inspection.facts import ValueFacts
from graphopt.inspection.reading.dataflow import Value, dtype_name
from graphopt.inspection.reading.writes import Write


def inputs_of(model: onnx.ModelProto, carried: Sequence[Write]) -> tuple[ValueFacts, ...]:
    """The inputs that are fed in each step."""
    known = {write.input.name for write in carried}
    known |= {tensor.name for tensor in model.graph.initializer}
    return tuple(_value(value) for value in model.graph.input if value.name not in known)


def outputs_of(model: onnx.ModelProto, carried: Sequence[Write]) -> tuple[ValueFacts, ...]:
    """The outputs that are reported, and not carried to the next step."""
    known = {write.output for write in carried}
    return tuple(_value(value) for value in model.graph.output if value.name not in known)


def _value(value: onnx.ValueInfoProto) -> ValueFacts:
    kind = value.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return ValueFacts(value.name, None, kind.removesuffix("_type"))
    dtype = dtype_name(value.type.tensor_type.elem_type) or "unknown"
    return ValueFacts(value.name, Value(value.name, type=value.type).shape, dtype)
