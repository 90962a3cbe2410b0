"""Patterns of operators, which are looked for in the flow of values.

A pattern matches a value by what it was computed from. Operands of sums, products, minima and
maxima may stand in any order, and changes of shape or precision in between do not matter. What a
pattern names is found in the result; a name that occurs twice stands for the same value both times.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from graphopt.inspection.reading.dataflow import Value
from graphopt.operators import of

# A graph may be made so that patterns fit almost everywhere; a search then ends without result.
_MAX_TRIES = 100_000


class Found(dict[str, Value | float]):
    """What a pattern has found so far, by name."""

    def __init__(self, *entries: "Found", tries: list[int] | None = None) -> None:
        super().__init__(*entries)
        self._tries = tries if tries is not None else [_MAX_TRIES]

    def __or__(self, other: dict[str, Value | float]) -> "Found":  # type: ignore[override]
        """A copy with more, which counts against the same search."""
        copy = Found(self, tries=self._tries)
        copy.update(other)
        return copy

    def value(self, name: str) -> Value:
        """A value that the pattern names."""
        value = self[name]
        assert isinstance(value, Value)
        return value

    def number(self, name: str) -> float:
        """A number that the pattern names."""
        number = self[name]
        assert isinstance(number, float)
        return number

    def may_go_on(self) -> bool:
        """Count a try; whether there may be more."""
        self._tries[0] -= 1
        return self._tries[0] > 0


Pattern = Callable[[Value, Found], Iterator[Found]]
"""All ways in which a value fits, each with what was found before and is found by it."""


@dataclass(frozen=True)
class Any:
    """Any value."""

    name: str

    def __call__(self, value: Value, found: Found) -> Iterator[Found]:
        yield from _named(self.name, value, found)


@dataclass(frozen=True)
class Fed:
    """An input of the graph, or a constant in its place."""

    name: str

    def __call__(self, value: Value, found: Found) -> Iterator[Found]:
        source = value.source
        is_fed = source.operation is None or source.tensor is not None
        if is_fed or _is_part(source) or is_counter(source):
            yield from _named(self.name, source, found)


def is_counter(value: Value, numbers: Value | None = None) -> bool:
    """Whether it is the int64 scalar that two float32 numbers, an input, stand for."""
    operation = value.operation
    if operation is None or operation.op_type != "ReduceSum":
        return False
    parts = operation.inputs[0].operation if operation.inputs[0] is not None else None
    if parts is None or parts.op_type != "Mul" or parts.inputs[0] is None:
        return False
    cast = parts.inputs[0].operation
    fed = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    is_pair = fed is not None and fed.is_input and fed.static_shape == (2,)
    return is_pair and (numbers is None or fed is numbers)


def _is_part(value: Value) -> bool:
    """Whether it is a part of an input, or of a sequence that is one, or several joined."""
    operation = value.operation
    return operation is not None and operation.op_type in {"Concat", "SequenceAt", "Split"}


@dataclass(frozen=True)
class Number:
    """A constant of one element, found as a float."""

    name: str

    def __call__(self, value: Value, found: Found) -> Iterator[Found]:
        number = value.source.number
        if number is not None and found.get(self.name, number) == number:
            yield found | {self.name: number}


@dataclass(frozen=True)
class Equals:
    """This number."""

    number: float

    def __call__(self, value: Value, found: Found) -> Iterator[Found]:
        if value.source.number == self.number:
            yield found


@dataclass(frozen=True)
class Named:
    """What fits a pattern, found under a name."""

    name: str
    pattern: Pattern

    def __call__(self, value: Value, found: Found) -> Iterator[Found]:
        source = value.source
        if self.name in found:
            if found[self.name] is source:
                yield found
            return
        for inner in self.pattern(value, found):
            yield from _named(self.name, source, inner)


@dataclass(frozen=True)
class Marked:
    """What fits a pattern, and leaves a mark that it did."""

    mark: str
    pattern: Pattern

    def __call__(self, value: Value, found: Found) -> Iterator[Found]:
        for inner in self.pattern(value, found):
            yield inner | {self.mark: 1.0}


class OneOf:
    """The first of these patterns that fits."""

    def __init__(self, *patterns: Pattern) -> None:
        self._patterns = patterns

    def __call__(self, value: Value, found: Found) -> Iterator[Found]:
        for pattern in self._patterns:
            yield from pattern(value, found)


class Op:
    """The result of an operator.

    Args:
        op_type: The operator.
        operands: Patterns of its first inputs.
        here: No change of shape or precision may stand between.
    """

    def __init__(self, op_type: str, *operands: Pattern, here: bool = False) -> None:
        self._op_type, self._operands, self._here = op_type, operands, here

    def __call__(self, value: Value, found: Found) -> Iterator[Found]:
        operation = value.operation
        if not self._here and (operation is None or operation.op_type != self._op_type):
            operation = value.source.operation
        if operation is None or operation.op_type != self._op_type or not found.may_go_on():
            return
        inputs = [operand for operand in operation.inputs if operand is not None]
        if len(inputs) < len(self._operands):
            return
        yield from self._all(inputs, self._operands, found)
        if of(self._op_type).is_commutative and len(self._operands) == len(inputs) == 2:
            yield from self._all(inputs[::-1], self._operands, found)

    def _all(
        self, inputs: list[Value], operands: tuple[Pattern, ...], found: Found
    ) -> Iterator[Found]:
        if not operands:
            yield found
            return
        for inner in operands[0](inputs[0], found):
            yield from self._all(inputs[1:], operands[1:], inner)


def match(pattern: Pattern, value: Value, found: Found | None = None) -> Found | None:
    """What a pattern finds in a value, in the first way that fits; None if there is none."""
    return next(pattern(value, found or Found()), None)


def _named(name: str, value: Value, found: Found) -> Iterator[Found]:
    value = value.source
    if found.get(name, value) is value:
        yield found | {name: value}
