"""Schedules, made anew of what the metadata of a graph says about them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from graphopt.schedules._compose import FromCaller, SequentialLR
from graphopt.schedules._decays import (
    CosineDecayLR,
    ExponentialDecayLR,
    InverseDecayLR,
    NaturalExpDecayLR,
    PolynomialDecayLR,
    WarmUpLR,
)
from graphopt.schedules._multi_step import MultiStepLR
from graphopt.schedules.base import Fixed, LearningRateSchedule

_KINDS = {
    kind.__name__: kind
    for kind in (
        *(CosineDecayLR, ExponentialDecayLR, InverseDecayLR, MultiStepLR),
        *(NaturalExpDecayLR, PolynomialDecayLR, WarmUpLR),
    )
}


def made_of(
    described: Any, fed: Mapping[str, float] = MappingProxyType({})
) -> LearningRateSchedule | None:
    """A schedule that a description says; None if that does not say all.

    Args:
        described: What `LearningRateSchedule.describe` returned, or a number.
        fed: The values of inputs, by name.

    Raises:
        TypeError: An argument is unknown, or has the wrong type.
        ValueError: An argument is out of range.

    Example:
        >>> made_of({"schedule": "WarmUpLR", "learning_rate": 0.1, "warmup_steps": 10}).value(5)
        0.05
        >>> made_of({"schedule": "list", "length": 3})
    """
    if not isinstance(described, Mapping):
        return Fixed(float(described))
    kind = described["schedule"]
    if kind == Fixed.__name__:
        return Fixed(described["constant"])
    if kind == FromCaller.__name__:
        return Fixed(fed[described["input"]]) if described.get("input") in fed else None
    if kind == SequentialLR.__name__:
        parts = [made_of(part, fed) for part in described["schedules"]]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return SequentialLR(known, list(described["milestones"]))
    if kind not in _KINDS:
        return None
    arguments = {name: value for name, value in described.items() if name != "schedule"}
    if kind == NaturalExpDecayLR.__name__:
        arguments.setdefault("decay_steps", 1)  # without steps it has no influence
    made: LearningRateSchedule = _KINDS[kind](**arguments)
    return made
