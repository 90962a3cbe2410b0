"""The learning rate of a step, to show it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from graphopt.graph import TrainingGraph
from graphopt.manifest import Manifest
from graphopt.mapped_values import array_of
from graphopt.schedules.base import Listed, described_list
from graphopt.schedules.described import made_of


def rate_of(
    graph: TrainingGraph, fed: Mapping[str, float] = MappingProxyType({})
) -> Callable[[int], float | None]:
    """The learning rate of the first group, as a function of the number of updates before.

    Args:
        graph: The graph.
        fed: What is fed, by name.

    Returns:
        A function that returns None where the file does not say it.
    """
    groups = Manifest.read(graph.lean, "groups").groups
    if not groups:
        return lambda _: None
    described = groups[0].learning_rate
    schedule = made_of(described, fed)
    if schedule is None:
        for tensor in graph.lean.graph.initializer:
            if tensor.name.startswith("learning_rates"):
                values = array_of(tensor)
                if described_list(values) == described:
                    schedule = Listed(tuple(values.tolist()))
    if schedule is None:
        return lambda _: None

    def rate(step: int) -> float | None:
        try:
            return schedule.value(step)
        except (IndexError, ArithmeticError):  # a list that has ended
            return None

    return rate


def scalars(constants: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Those of the values that are one number."""
    return {n: float(a.reshape(())) for n, a in constants.items() if a.size == 1}
