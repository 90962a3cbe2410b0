"""Time of steps that a GPU may finish later than they return."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

_ROUNDS = 5


@dataclass(frozen=True)
class Steps:
    """Something to measure.

    Attributes:
        start: Starts a step; it may return before the step is done.
        wait: Returns when all are done.
    """

    start: Callable[[], object]
    wait: Callable[[], object]


def milliseconds(steps: Steps, *, warm_up: int = 5, seconds: float = 0.15) -> float:
    """The median over rounds of the time of a step, many of which are started in a row."""
    for _ in range(warm_up):
        steps.start()
    steps.wait()
    count = max(1, round(seconds / _one_round(steps, 3)))
    return 1000 * statistics.median(_one_round(steps, count) for _ in range(_ROUNDS))


def _one_round(steps: Steps, count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        steps.start()
    steps.wait()
    return (time.perf_counter() - begin) / count
