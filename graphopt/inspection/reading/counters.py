"""The scalars that a graph carries beside its step: the loss scale, counters, and a seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any as AnyType

from graphopt.inspection.reading.conditions import condition_of
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.pattern import Any, Equals, Fed, Found, Number, OneOf, Op, match
from graphopt.inspection.reading.writes import Write
from graphopt.loss_scale import SMALLEST
from graphopt.states import (
    LOSS_SCALE,
    LOSS_SCALE_STEPS,
    RANDOM_SEED,
    RANDOM_STEP,
    SKIPPED_STEPS,
)

_SCALE, _STEPS, _FLAG = Fed("scale"), Fed("steps"), Any("finite")
_SMALLER = Op("Mul", _SCALE, Number("backoff_factor"))
_BACKED = OneOf(Op("Max", _SMALLER, Number("floor")), _SMALLER)
_LARGER = Op("Mul", _SCALE, Number("growth_factor"))
_GROWN = OneOf(Op("Min", _LARGER, Number("ceiling")), _LARGER)
_COUNTED = Op("Add", _STEPS, Equals(1.0))
_INTERVAL = _COUNTED, Number("growth_interval")
_FULL = OneOf(Op("GreaterOrEqual", *_INTERVAL), Op("Equal", *_INTERVAL))
_HOLDS = Op("Not", Op("IsInf", _GROWN))
_GROWS = OneOf(Op("And", _FULL, _HOLDS), Op("And", _HOLDS, _FULL))
_NEW_SCALE = Op("Where", _FLAG, Op("Where", _GROWS, _GROWN, _SCALE), _BACKED)
_GOES_ON = OneOf(Op("And", _FLAG, Op("Not", _FULL)), Op("And", Op("Not", _FULL), _FLAG))
_NEW_STEPS = Op("Where", _GOES_ON, _COUNTED, Equals(0.0))
# Of gradients that are added up: it is an update, or none that should have been one.
_UNLESS_LAST = Op("And", _FLAG, Op("Not", Any("last")))
_GOOD = OneOf(Op("Or", Any("updated"), _UNLESS_LAST), _FLAG)
_NEXT = OneOf(Op("Add", Fed("step"), Equals(1.0)), Op("Sub", Fed("step"), Any("gate")))
_DRAWN = {
    RANDOM_SEED.name: OneOf(Op("Sub", _NEXT, Equals(1.0)), Fed("step")),
    RANDOM_STEP.name: _NEXT,
}
_SKIPPED = Op("Add", Fed("skipped"), Op("Cast", Op("Not", _GOOD)))


@dataclass(frozen=True)
class Counters:
    """What was recognised.

    Attributes:
        writes: By the name of the state.
        rule: What a dynamic loss scale is, as the metadata would say it; None without one.
    """

    writes: Mapping[str, Write] = field(default_factory=dict)
    rule: Mapping[str, AnyType] | None = None


def counters(carried: Sequence[Write], scale: Value | float | None) -> Counters:
    """The loss scale, the steps since it changed, those skipped, and what is drawn from.

    Args:
        carried: What is handed from step to step.
        scale: What gradients are divided by.
    """
    found: dict[str, Write] = {}
    rule = None
    for write in carried:
        held, new = write.counter or (write.input, write.new)
        skips = match(_SKIPPED, new)
        if skips is not None and skips["skipped"] is held and _is_finite(skips):
            found[SKIPPED_STEPS.name] = write
        if (drawn := _DRAWN.get(write.input.name)) is not None:
            goes = match(drawn, new)
            if goes is not None and goes["step"] is held:
                found[write.input.name] = write
        if write.input is scale and (changes := match(_NEW_SCALE, write.new)) is not None:
            steps = next((w for w in carried if _held(w) is changes["steps"]), None)
            if changes["scale"] is write.input and steps is not None and _goes(changes, steps):
                found |= {LOSS_SCALE.name: write, LOSS_SCALE_STEPS.name: steps}
                rule = _rule(changes, write)
    return Counters(found, rule)


def _held(write: Write) -> Value:
    """The scalar that it holds."""
    return write.counter[0] if write.counter else write.input


def _goes(changes: Found, steps: Write) -> bool:
    """Whether the steps are counted as the change of the scale needs it."""
    counted = match(_NEW_STEPS, steps.counter[1] if steps.counter else steps.new)
    return (
        counted is not None
        and counted["steps"] is _held(steps)
        and counted["growth_interval"] == changes["growth_interval"]
        and _is_finite(counted)
        and _is_finite(changes)
    )


def _is_finite(found: Found) -> bool:
    """Whether a flag says that gradients are finite."""
    condition = condition_of(found.value("finite"))
    return bool(condition.finite) and condition.mask is None


def _rule(changes: Found, write: Write) -> dict[str, AnyType]:
    names = ("growth_factor", "backoff_factor", "floor", "ceiling")
    numbers = {"floor": 0.0, "ceiling": None} | {n: changes[n] for n in names if n in changes}
    start = {"initial": write.initial} if isinstance(write.initial, float) else {}
    if "floor" in changes and math.isclose(changes.number("floor"), SMALLEST, rel_tol=1e-6):
        numbers["floor"] = SMALLEST  # of which float32 has another decimal
    interval = int(changes.number("growth_interval"))
    return {"schedule": "DynamicLossScale", **start, **numbers, "growth_interval": interval}
