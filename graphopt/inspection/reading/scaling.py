"""What a gradient is multiplied by and limited to before an update, and what a norm is over."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.pattern import (
    Any,
    Equals,
    Fed,
    Found,
    Named,
    Number,
    OneOf,
    Op,
    Pattern,
    match,
)

_INVERSE = OneOf(Op("Reciprocal", Fed("fed_scale")), Op("Div", Equals(1.0), Fed("fed_scale")))
_SHARE = Op("Div", Number("clip_norm"), Op("Add", Any("norm"), Number("smallest")))
_LIMITED = OneOf(
    Op("Mul", Op("Min", _SHARE, Equals(1.0)), OneOf(_INVERSE, Number("inverse_scale"))),
    Op("Min", _SHARE, Equals(1.0)),
)
_SCALED = Op("Mul", Any("gradient"), Named("factor", OneOf(_LIMITED, _INVERSE)))
# Any product with a number may be one of the backward pass, but for one that is clipped then.
_UNSCALED = OneOf(_SCALED, Op("Mul", Any("gradient"), Number("inverse_scale")), Any("gradient"))
_LOWEST = OneOf(Op("Neg", Number("clip_value")), Number("lowest"))

SCALED: Pattern = OneOf(
    Op("Clip", _UNSCALED, _LOWEST, Number("clip_value")), _SCALED, Any("gradient")
)
"""The gradient, multiplied by a factor of the step and limited, or as it is."""

_KEPT = Op("Mul", Fed("total"), Any("keeps"))
_UNLESS_NONE = Op("Where", Op("Equal", Any("keeps"), Equals(0.0)), Equals(0.0), _KEPT)
_SUM = Op(
    "Add",
    OneOf(_UNLESS_NONE, _KEPT),
    Op("Mul", Any("gradient"), OneOf(_INVERSE, Number("inverse_scale"))),
)
_TOTAL = OneOf(Op("Where", Any("counts"), _SUM, Fed("total")), _SUM)
_LIMITED_SHARE = OneOf(Op("Mul", Op("Min", _SHARE, Equals(1.0)), Any("share")), Any("share"))
_OF_SEVERAL = OneOf(Op("Mul", _TOTAL, _LIMITED_SHARE), _TOTAL)
_PART_OF_SEVERAL = OneOf(Op("Mul", Any("gradient"), _LIMITED_SHARE), Any("gradient"))

ACCUMULATED: Pattern = OneOf(Op("Clip", _OF_SEVERAL, _LOWEST, Number("clip_value")), _OF_SEVERAL)
"""The same of the sum of the gradients of several steps."""
PART_OF_ACCUMULATED: Pattern = OneOf(
    Op("Clip", _PART_OF_SEVERAL, _LOWEST, Number("clip_value")), _PART_OF_SEVERAL
)
"""The same of what a sum has of one parameter."""

_MASKED_SQUARES = Op(
    "Where", Op("Gather", Any("mask"), Number("entry")), Any("squares"), Equals(0.0)
)
_ROOT = OneOf(
    Op("Mul", Op("Sqrt", Any("total")), OneOf(_INVERSE, Number("inverse_scale"))),
    Op("Mul", Op("Sqrt", Any("total")), Op("Reciprocal", Any("steps"))),
    Op("Sqrt", Any("total")),
)
_SQUARE = OneOf(
    Op("ReduceSumSquare", Any("gradient")),
    Op("ReduceSum", Op("Mul", Any("gradient"), Any("gradient"))),
)


@dataclass(frozen=True)
class Scaling:
    """What is done to a gradient before the update.

    Attributes:
        loss_scale: What it is divided by: an input of the graph, or a number; None for nothing.
        clip_norm: What its norm is limited to.
        norm: The norm, which may be that of several gradients.
        clip_value: What its elements are limited to.
    """

    loss_scale: Value | float | None = None
    clip_norm: float | None = None
    norm: Value | None = None
    clip_value: float | None = None

    @property
    def kind(self) -> tuple[object, ...]:
        """What is the same for all parameters of an optimizer."""
        fed = self.loss_scale
        scale = fed.name if isinstance(fed, Value) else fed
        return scale, self.clip_norm, self.clip_value


UNSCALED = Scaling()
"""Nothing is done."""


def scaling(found: Found) -> Scaling:
    """What a pattern that has `SCALED` in it found."""
    scale = found.get("fed_scale", found.get("inverse_scale"))
    norm = found.get("norm")
    return Scaling(
        _inverse(scale) if isinstance(scale, float) else scale,
        _number(found, "clip_norm"),
        norm if isinstance(norm, Value) else None,
        _number(found, "clip_value"),
    )


def added(new: Value) -> Found | None:
    """What is added up in the new sum of the gradients of several steps, if it is one.

    Returns:
        The old sum as "total", what is added as "gradient", and what it is multiplied by.
    """
    return match(_TOTAL, new)


def is_symmetric(found: Found) -> bool:
    """Whether elements are limited to the same number on both sides."""
    return "lowest" not in found or found["lowest"] == -found.number("clip_value")


def squared(norm: Value) -> list[tuple[Value, int | None]] | None:
    """The gradients whose norm it is, each with the entry of the mask that says if it counts.

    Returns:
        None where that was not recognised.
    """
    found = match(_ROOT, norm)
    return None if found is None else _squares(found.value("total"))


def _squares(total: Value) -> list[tuple[Value, int | None]] | None:
    result: list[tuple[Value, int | None]] = []
    for term in terms(total):
        masked = match(_MASKED_SQUARES, term)
        if masked is not None:
            inner = _squares(masked.value("squares"))
            if inner is None:
                return None
            result += [(value, int(masked.number("entry"))) for value, _ in inner]
            continue
        square = match(_SQUARE, term)
        if square is None:
            return None
        result.append((square.value("gradient"), None))
    return result


def terms(total: Value) -> Iterator[Value]:
    """What a sum is made of."""
    waiting = [total]
    while waiting:
        value = waiting.pop().source
        operation = value.operation
        if operation is not None and operation.op_type in ("Add", "Sum"):
            waiting += [operand for operand in reversed(operation.inputs) if operand is not None]
        else:
            yield value


def _number(found: Found, name: str) -> float | None:
    value = found.get(name)
    return value if isinstance(value, float) else None


def _inverse(number: float) -> float:
    """The shortest decimal of which this is the inverse in float32."""
    if not number:
        return float("inf")
    for digits in range(1, 10):
        candidate = float(f"{1 / number:.{digits}g}")
        if np.float32(1 / candidate) == np.float32(number):
            return candidate
    return 1 / number
