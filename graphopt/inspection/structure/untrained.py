"""What could be trained: the weights that the forward pass reads."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from graphopt.inspection.facts import ParameterFacts
from graphopt.inspection.reading.dataflow import Dataflow, Operation, Value
from graphopt.inspection.reading.read_model import Reading
from graphopt.operators import Moves, of
from graphopt.stage import Stage

_FLOATING = {"float16", "bfloat16", "float32", "float64"}
_DEEPEST = 3  # changes of shape or precision between a weight and its operator
_SUMS, _PRODUCTS = {"Add", "Sub"}, {"Div", "Mul"}
_FORWARD = {"forward", "loss"}
_WITH_BODIES = {"If", "Loop", "Scan"}
_ROUNDING = 1e-2  # of sines in bfloat16
_SLOWEST = 0.5  # the first frequency is 1


def could_be_trained(reading: Reading, stages: Sequence[Stage]) -> tuple[str, ...]:
    """The initializers that are weights of the forward pass, and are not trained.

    Constants are none: a table of two values such as a mask, one of sines or cosines, and what is
    added to or multiplied by data that no weight has touched, such as the mean of images.

    Args:
        reading: The model.
        stages: The stage of each node.
    """
    flow = reading.flow
    known = {parameter.name for parameter in reading.merged.parameters}
    candidates = {
        name: value
        for name in reading.file.model.graph.initializers
        for value in [flow.values[name]]
        if name not in known and value.dtype in _FLOATING
        if math.prod(value.static_shape or ()) > 1
    }
    holders = [write.input.name for write in reading.carried]
    holding = (*known, *holders, *reading.buffers)
    learned = [flow.values[name] for name in holding if name in flow.values]
    constants = _Constants()
    data = _only_data(flow, learned, constants)
    return tuple(
        name
        for name, value in candidates.items()
        if any(
            stages[reader.node] == "forward" and _is_weight(reader, value, data, constants)
            for reader in value.readers
        )
    )


def _only_data(flow: Dataflow, learned: Iterable[Value], constants: "_Constants") -> set[int]:
    """What is computed from what is fed, and that no weight has touched."""
    touched = {id(value) for value in learned}
    data: set[int] = set()
    for operation in flow.operations:
        operands = [operand for operand in operation.inputs if operand is not None]
        data.update(id(o) for o in operands if o.is_input and id(o) not in touched)
        weights = of(operation.op_type).weights
        outputs = {id(output) for output in operation.outputs}
        if (
            operation.op_type in _WITH_BODIES
            or any(id(operand) in touched for operand in operands)
            or any(
                id(operand) not in data
                and _reads(operation, operand, weights)
                and not (operation.op_type == "Gather" and constants.is_waves(operand))
                for operand in operands
            )
        ):
            touched |= outputs
        elif any(id(operand) in data for operand in operands):
            data |= outputs
    return data


def weight_of(flow: Dataflow, name: str, stages: Sequence[Stage]) -> str | None:
    """The operator of which a parameter is the weight in the forward pass, if it is of one.

    Args:
        flow: The flow of values of the model.
        name: The name of the parameter.
        stages: The stage of each node.
    """
    for value in (flow.values.get(name), flow.values.get(f"{name}/shaped")):
        if value is not None and (found := _weight_of(value, stages, 0)) is not None:
            return found
    return None


def _weight_of(value: Value, stages: Sequence[Stage], depth: int) -> str | None:
    for reader in value.readers:
        if stages[reader.node] not in _FORWARD:
            continue
        operator = of(reader.op_type)
        if _reads(reader, value, operator.weights):
            return operator.fused or reader.op_type
        if reader.op_type in ("Cast", "Identity") and depth < _DEEPEST and reader.outputs:
            found = _weight_of(reader.outputs[0], stages, depth + 1)
            if found is not None:
                return found
    return None


def _is_weight(
    reader: Operation, value: Value, data: Collection[int], constants: "_Constants", depth: int = 0
) -> bool:
    operator = of(reader.op_type)
    if _reads(reader, value, operator.settings):
        return False
    if operator.moves <= Moves.ORDER and depth < _DEEPEST:
        return any(
            _is_weight(after, output, data, constants, depth + 1)
            for output in reader.outputs
            for after in output.readers
        )
    if reader.op_type in _SUMS | _PRODUCTS:
        return not any(id(other) in data for other in reader.inputs) and not constants.is_table(
            value
        )
    if reader.op_type == "Gather":
        return not constants.is_waves(value)
    return bool(operator.weights)  # the others are biases, or weights that are written out


class _Constants:
    """Says which constants are tables, by their values; looks at each of them once."""

    def __init__(self) -> None:
        self._has_two_values, self._is_waves = cache(_has_two_values), cache(_is_waves)

    def is_table(self, value: Value) -> bool:
        """Whether an operand of a sum or product is no weight: it has two values, or is waves."""
        return self._has_two_values(value.source) or self.is_waves(value)

    def is_waves(self, value: Value) -> bool:
        """Whether rows are the sines and cosines of 0, 1, 2 ... times some frequencies."""
        return self._is_waves(value.source)


def _has_two_values(value: Value) -> bool:
    """Whether a matrix does; a row may be a bias or a scale that has not been trained."""
    array = value.constant
    if array is None or not array.size or sum(size > 1 for size in array.shape) < 2:
        return False
    low, high = array.min(), array.max()
    return bool(((array == low) | (array == high)).all())


def _is_waves(value: Value) -> bool:
    array = value.constant
    if array is None or not array.size or array.ndim < 2 or array.dtype.kind in "OSU":
        return False
    table = array.reshape(-1, array.shape[-1])[:3].astype(np.float64)
    if len(table) < 3:
        return False
    first, second, third = table
    with np.errstate(invalid="ignore", over="ignore"):
        cosine = (first == 1) & np.isclose(third, 2 * second**2 - 1, atol=_ROUNDING)
        double = 2 * second * np.sqrt(1 - second**2)
        sine = (first == 0) & np.isclose(third, double, atol=_ROUNDING)
    return bool((cosine | sine).all()) and bool(second.max() > _SLOWEST)


def _reads(reader: Operation, value: Value, places: Sequence[int]) -> bool:
    return any(place < len(reader.inputs) and reader.inputs[place] is value for place in places)


def parameters_of(
    reading: Reading, could_be: Sequence[str], stages: Sequence[Stage]
) -> tuple[ParameterFacts, ...]:
    """The parameters of the optimizer; without one those that have a buffer for gradients.

    Args:
        reading: The model.
        could_be: Those that could be trained, which are taken where there are no such either.
        stages: The stage of each node.
    """
    flow, buffers = reading.flow, reading.buffers
    return tuple(
        replace(known, op_type=known.op_type or weight_of(flow, known.name, stages))
        for known in reading.merged.parameters
    ) or tuple(
        ParameterFacts(
            name=name,
            shape=shape,
            dtype=dtype,
            op_type=weight_of(flow, name, stages),
            bytes=math.prod(shape) * np.dtype(dtype).itemsize,
            gradient=buffers[name].name if name in buffers else None,
        )
        for name in buffers or could_be
        if name in flow.values
        for shape in [flow.values[name].static_shape or ()]
        for dtype in [flow.values[name].dtype or "float32"]
    )
