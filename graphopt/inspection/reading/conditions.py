"""On what an update depends: an entry of a mask, and whether gradients are finite."""

from dataclasses import dataclass

from graphopt.accumulation import UPDATE_INPUT
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.pattern import Any, Equals, Number, OneOf, Op, match
from graphopt.inspection.reading.scaling import terms

_ENTRY = Op("Gather", Any("mask"), OneOf(Number("entry"), Any("entry")))
_FINITE = Op("Not", Op("IsNaN", Any("total")))
# Zero times a number is zero, where that is finite.
_ZERO = Op("ReduceSum", Op("Mul", Any("gradient"), Equals(0.0)))
_STEPS = Op("Add", Any("count"), Equals(1.0)), Number("steps")
_LAST = OneOf(Op("GreaterOrEqual", *_STEPS), Op("Equal", *_STEPS))
_BOUNDED = Op("Not", Op("IsInf", Any("norm")))


@dataclass(frozen=True)
class Condition:
    """What must be true.

    Attributes:
        mask: A mask of which one entry must be; None where nothing is masked.
        entry: The index of that entry, if it is a constant.
        finite: Flags that say whether gradients are finite; see `checked`.
        others: What else must be.
        last: Of several steps it must be the last: their number, or the input that says so.
    """

    mask: Value | None = None
    entry: int | None = None
    finite: tuple[Value, ...] = ()
    others: tuple[Value, ...] = ()
    last: Value | float | None = None


def condition_of(flag: Value) -> Condition:
    """What a bool says."""
    mask, entry = None, None
    last: Value | float | None = None
    finite: list[Value] = []
    others: list[Value] = []
    for part in _parts(flag):
        found = match(_ENTRY, part)
        if found is not None and mask is None:
            mask = found.value("mask")
            number = found["entry"]
            entry = int(number) if isinstance(number, float) else None
        elif (counted := match(_LAST, part)) is not None:
            last = counted.number("steps")
        elif part.is_input and part.name == UPDATE_INPUT:
            last = part
        elif _is_check(part):
            finite.append(part)
        elif match(_BOUNDED, part) is None:  # whose squares are finite, if gradients are
            others.append(part)
    return Condition(mask, entry, tuple(finite), tuple(others), last)


def _parts(flag: Value) -> list[Value]:
    """All that must be true."""
    found: list[Value] = []
    waiting = [flag]
    while waiting:
        value = waiting.pop().source
        operation = value.operation
        if operation is not None and operation.op_type == "And":
            waiting += [operand for operand in reversed(operation.inputs) if operand is not None]
        else:
            found.append(value)
    return found


def checked(flag: Value) -> list[Value]:
    """The values of which a flag says whether they are finite."""
    found = match(_FINITE, flag)
    zeros = () if found is None else (match(_ZERO, term) for term in terms(found.value("total")))
    return [zero.value("gradient") for zero in zeros if zero is not None]


def _is_check(flag: Value) -> bool:
    found = match(_FINITE, flag)
    return found is not None and match(_ZERO, next(terms(found.value("total")))) is not None
