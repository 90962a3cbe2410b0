"""What a caller feeds, and what a caller gets."""

import onnx_ir as ir

from graphopt.inspection.facts import ValueFacts
from graphopt.inspection.opening.sound_model import kind_of
from graphopt.inspection.reading.dataflow import declared_dtype, declared_shape
from graphopt.inspection.reading.read_model import Reading


def inputs_of(reading: Reading) -> tuple[ValueFacts, ...]:
    """The inputs that are fed in each step."""
    graph = reading.file.model.graph
    known = {write.input.name for write in reading.carried} | set(graph.initializers)
    return tuple(_value(value) for value in graph.inputs if value.name not in known)


def outputs_of(reading: Reading) -> tuple[ValueFacts, ...]:
    """The outputs that are reported, and not carried to the next step."""
    known = {write.output for write in reading.carried}
    outputs = reading.file.model.graph.outputs
    return tuple(_value(value) for value in outputs if value.name not in known)


def _value(value: ir.Value) -> ValueFacts:
    kind = kind_of(value)
    if kind != "tensor":
        return ValueFacts(str(value.name), None, kind)
    return ValueFacts(str(value.name), declared_shape(value), declared_dtype(value) or "unknown")
