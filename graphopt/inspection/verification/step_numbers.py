"""Which steps are worth a try: those for which schedules were made."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.inspection.facts import Schedule
from graphopt.inspection.reading import rates
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.reading.trained import Trained


def step_numbers(random: np.random.Generator, steps: int, horizon: int) -> list[int]:
    """The steps to compare: the first, and others before the horizon."""
    if horizon <= steps:
        return [number % horizon for number in range(steps)]
    return [0, *sorted(random.integers(1, horizon, steps - 1).tolist())]


def horizon_of(nodes: Recovered, steps: int) -> int:
    """How many steps there are that are worth a try; lists have no more."""
    ends, lengths = [steps], []
    for schedule, value in _scheduled(nodes.trained):
        kind = schedule["schedule"]
        if kind == "list":
            lengths.append(int(schedule["length"]))
        if kind in rates.RECOGNISED:
            ends += [number + 1 for number, _ in rates.curve(value, nodes.step, None)[-1:]]
    return min([max(ends), *lengths])


def _scheduled(
    trained: Sequence[Trained],
) -> Iterable[tuple[Mapping[str, Any], Value]]:
    """The learning rates and weight decays that are no numbers, each once."""
    found = {}
    for parameter in trained:
        facts = parameter.facts
        pairs: tuple[tuple[Schedule, Value | None], ...] = (
            (facts.learning_rate, parameter.rate),
            (facts.weight_decay, parameter.factor),
        )
        for schedule, value in pairs:
            if isinstance(schedule, Mapping) and value is not None:
                found[id(value)] = (schedule, value)
    return found.values()
