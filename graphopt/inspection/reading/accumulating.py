"""Gradients that are added up over several steps: their sums, and when these are applied."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.accumulation import Accumulation
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.pattern import Any, Equals, Fed, Found, Op, match
from graphopt.inspection.reading.scaling import added
from graphopt.inspection.reading.trained import Trained
from graphopt.inspection.reading.update import Update
from graphopt.inspection.reading.writes import Write
from graphopt.states import ACCUMULATED, ACCUMULATION_COUNT

APPLIED = "applied"
"""Under this name an update has what it is given of a sum, where its parameters differ in that."""

_COUNTED = Op("Add", Fed("count"), Equals(1.0))
_GOES_ON = Op("Where", Any("last"), Equals(0.0), _COUNTED)
_NEXT = Op("Where", Any("seen"), _GOES_ON, Fed("count"))
_INVERSE = Op("Reciprocal", Op("Cast", _COUNTED))


@dataclass(frozen=True)
class Accumulating:
    """What was recognised.

    Attributes:
        rule: How many steps make an update; None where they do not, or that is not known.
        count: The number of steps that are added up.
        flag: The input that says which step is an update.
    """

    rule: Accumulation | None = None
    count: Write | None = None
    flag: Value | None = None


def sums(carried: Sequence[Write]) -> dict[str, Found]:
    """What is added to the sums of gradients, by the name of the bucket."""
    found = {}
    for write in carried:
        kind, _, bucket = write.input.name.partition(".")
        more = added(write.new) if kind == ACCUMULATED.name else None
        if more is not None and more["total"] is write.input:
            found[bucket] = more | {"sum": write.new.source}
    return found


def with_sum(update: Update, more: Found | None) -> Update:
    """An update that is told what is added up for it."""
    if more is None:
        return update
    found = update.found | more
    if "total" not in update.found and "gradient" in update.found:
        found = found | {APPLIED: update.found["gradient"]}
    return Update(update.optimizer, update.new, found, update.enabled)


def accumulating(carried: Iterable[Write], trained: Sequence[Trained]) -> Accumulating:
    """How many steps make an update.

    Args:
        carried: What is handed from step to step.
        trained: The parameters.
    """
    count = next((w for w in carried if w.input.name == ACCUMULATION_COUNT.name), None)
    if count is None or not trained:
        return Accumulating()
    flags = {_identity(parameter.update.condition.last) for parameter in trained}
    shares = {_share(parameter.share, count.input) for parameter in trained}
    held, new = count.counter or (count.input, count.new)
    goes = match(_NEXT, new)
    if len(flags) > 1 or len(shares) > 1 or goes is None or goes["count"] is not held:
        return Accumulating()
    last, (share,) = trained[0].update.condition.last, shares
    return Accumulating(_rule(last, share), count, last if isinstance(last, Value) else None)


def _identity(last: Value | float | None) -> object:
    return id(last) if isinstance(last, Value) else last


def _share(share: Value | None, count: Value) -> float | str | None:
    """What a sum is multiplied by: a number, or one divided by the number of steps."""
    if share is None:
        return 1.0
    if share.source.number is not None:
        return share.source.number
    found = match(_INVERSE, share)
    return "mean" if found is not None and found["count"] is count else None


def _rule(last: Value | float | None, share: float | str | None) -> Accumulation | None:
    if isinstance(last, float):
        mean = float(np.float32(1 / last)) if last >= 1 else None
        if mean is not None and (share == mean or np.float32(share or 0) == np.float32(mean)):
            return Accumulation(int(last))
        return Accumulation(int(last), "sum") if share == 1 and last >= 1 else None
    if last is None or share not in (1.0, "mean"):
        return None
    return Accumulation(None, "mean" if share == "mean" else "sum")


def parts(update: Update) -> Mapping[int, Value]:
    """What each parameter of a bucket is given of the sum, by its place, where that differs."""
    value = update.value(APPLIED)
    made = None if value is None else value.source.operation
    if value is None or made is None:
        return {}
    if made.op_type != "Concat":
        return {0: value}
    return dict(enumerate(operand for operand in made.inputs if operand is not None))
