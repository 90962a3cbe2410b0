"""What a caller feeds, and what a caller gets."""

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.inspection.facts import ValueFacts
from graphopt.inspection.opening.sound_model import kind_of
from graphopt.inspection.reading.dataflow import declared_dtype, declared_shape
from graphopt.inspection.reading.writes import Write


def inputs_of(model: ir.Model, carried: Sequence[Write]) -> tuple[ValueFacts, ...]:
    """The inputs that are fed in each step."""
    known = {write.input.name for write in carried}
    known |= set(model.graph.initializers)
    return tuple(_value(value) for value in model.graph.inputs if value.name not in known)


def outputs_of(model: ir.Model, carried: Sequence[Write]) -> tuple[ValueFacts, ...]:
    """The outputs that are reported, and not carried to the next step."""
    known = {write.output for write in carried}
    return tuple(_value(value) for value in model.graph.outputs if value.name not in known)


def _value(value: ir.Value) -> ValueFacts:
    kind = kind_of(value)
    if kind != "tensor":
        return ValueFacts(str(value.name), None, kind)
    return ValueFacts(str(value.name), declared_shape(value), declared_dtype(value) or "unknown")
