"""Numbers that a graph computes of the step: their operations, their values, their formula."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.inspection.reading.dataflow import Operation, Value
from graphopt.operators import Moves, of

# More operations than this are no schedule.
_MAX_OPERATIONS = 400
# A formula that is longer is cut.
_MAX_FORMULA = 300
_MAX_OPERANDS = 60

_NAMED_ALIKE = (
    *("Abs", "Add", "Ceil", "Cos", "Equal", "Exp", "Floor", "Greater", "Less", "Log", "Reciprocal"),
    *("Round", "Sign", "Sin", "Sqrt", "Tanh", "Where"),
)
_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    "And": np.logical_and,
    "Div": np.divide,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Pow": np.power,
    "Sub": np.subtract,
} | {name: getattr(np, name.lower()) for name in _NAMED_ALIKE}


def operations_of(value: Value) -> list[Operation]:
    """What a value is computed by, operands first; empty if that is too much for a schedule."""
    found: dict[int, Operation] = {}
    waiting = [(value, False)]
    while waiting:
        current, done = waiting.pop()
        operation = current.operation
        if operation is None or id(operation) in found:
            continue
        if done:
            found[id(operation)] = operation
            continue
        if len(found) + len(waiting) > _MAX_OPERATIONS:
            return []
        waiting.append((current, True))
        waiting += [(operand, False) for operand in operation.inputs if operand is not None]
    return list(found.values())


def evaluated(value: Value, step: Value, at: np.ndarray) -> np.ndarray | None:
    """A scalar at several steps at once; None if an operator is not one of numbers.

    Args:
        value: What is computed.
        step: The input that counts the steps.
        at: The steps, int64 [N].
    """
    known: dict[int, np.ndarray] = {id(step): at, id(step.source): at}
    with np.errstate(all="ignore"):
        for operation in operations_of(value):
            (output, *_) = operation.outputs
            if id(output) not in known:
                operands = [_operand(operand, known) for operand in operation.inputs]
                result = _result(operation, operands)
                if result is not None:
                    known[id(output)] = result
    result = known.get(id(value))
    return None if result is None or result.shape not in ((), at.shape) else result


def _operand(value: Value | None, known: Mapping[int, np.ndarray]) -> np.ndarray | None:
    if value is None:
        return None
    if id(value) in known:
        return known[id(value)]
    constant = value.constant
    return constant.reshape(()) if constant is not None and constant.size == 1 else constant


def _result(operation: Operation, operands: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """What an operator computes of numbers, of each step by itself."""
    kind = operation.op_type
    moves = of(kind).moves
    if moves <= Moves.PRECISION and operands:
        first = operands[0]
        if moves is Moves.SHAPE or first is None:
            return first
        if "to" not in operation.attributes:
            return None
        to_integer = operation.number("to", 0) in (ir.DataType.INT32, ir.DataType.INT64)
        return first.astype(np.int64) if to_integer else first
    if kind == "Gather" and len(operands) == 2:
        values, index = operands
        if values is None or index is None or values.ndim != 1 or not values.size:
            return None
        return values[np.clip(index.astype(np.int64), 0, len(values) - 1)]
    present = [operand for operand in operands if operand is not None]
    if kind not in _ELEMENTWISE or len(present) != len(operands):
        return None
    try:
        if kind in ("Max", "Min"):
            result = present[0]
            for other in present[1:]:
                result = _ELEMENTWISE[kind](result, other)
            return np.asarray(result)
        if kind == "Div" and all(operand.dtype.kind in "iu" for operand in present):
            return np.asarray(np.floor_divide(*present))
        return np.asarray(_ELEMENTWISE[kind](*present))
    except (TypeError, ValueError):  # of another number of operands, or of shapes that do not fit
        return None


_SYMBOLS = {
    "Add": "+",
    "Div": "/",
    "Mul": "*",
    "Pow": "^",
    "Sub": "-",
    "Less": "<",
    "Greater": ">",
    "LessOrEqual": "<=",
    "GreaterOrEqual": ">=",
    "Equal": "==",
}


def expression(value: Value) -> str:
    """What a scalar is computed by, as a formula."""
    text = _formula(value, [_MAX_OPERANDS])
    if text.startswith("(") and _closes_at_end(text):
        text = text[1:-1]
    return text if len(text) <= _MAX_FORMULA else f"{text[:_MAX_FORMULA]} ..."


def _formula(value: Value, left: list[int], depth: int = 0) -> str:
    """The same, for so many operands more, which are counted down."""
    value = value.source
    number = value.number
    if number is not None:
        return f"{number:g}"
    operation = value.operation
    left[0] -= 1
    if left[0] < 0 or depth > _MAX_OPERANDS:
        return "..."
    if operation is None:
        return value.name[:60]
    inputs = [operand for operand in operation.inputs if operand is not None]
    if operation.op_type == "Cast" and inputs:
        return _formula(inputs[0], left, depth + 1)
    operands = [_formula(operand, left, depth + 1) for operand in inputs[:_MAX_OPERANDS]]
    symbol = _SYMBOLS.get(operation.op_type)
    if symbol and len(operands) == 2:
        return f"({operands[0]} {symbol} {operands[1]})"
    return f"{operation.op_type.lower()}({', '.join(operands)})"


def _closes_at_end(text: str) -> bool:
    """Whether the first parenthesis is closed by the last character."""
    depth = 0
    for place, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return place == len(text) - 1
    return False


def inputs_read_by(value: Value) -> list[Value]:
    """The inputs of the graph that a scalar is computed from."""
    read = [value, *(operand for o in operations_of(value) for operand in o.inputs if operand)]
    return list({id(v.source): v.source for v in read if v.source.is_input}.values())
