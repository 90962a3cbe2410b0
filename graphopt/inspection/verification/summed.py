"""Gradients of several steps: what a step has found added up, what it adds, and what is applied."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.accumulation import Accumulation
from graphopt.inspection.verification.batches import Array, Batch
from graphopt.inspection.verification.runnable import Given
from graphopt.states import ACCUMULATION_COUNT

_MOST_STEPS = 9  # that are added up where a caller says which is the last
_LEAST_PART, _LARGEST_PART = 0.1, 0.9  # of a sum that the step finds
_UNITS = 6.0  # in the last place, of two products and a sum
_UNIT = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Added:
    """The gradients of a step, batch by batch, and the sums that they are added to.

    Attributes:
        before: The sums of the steps before, which count for nothing where there were none.
        gradients: What is added, times the loss scale.
        totals: The sums, in float64.
        off: How far a sum may be off by rounding.
        share: What a sum is multiplied by.
    """

    before: list[Array]
    gradients: list[Array]
    totals: list[Array]
    off: list[Array]
    share: float


def placed(
    rule: Accumulation, given: Given, random: np.random.Generator, *, is_last: bool
) -> Given:
    """A step at a place among those that are added up.

    Args:
        rule: How many they are.
        given: What the step is given besides.
        random: Makes the place up, where it may be any.
        is_last: Whether it shall be the last, as it is where each step is an update.
    """
    if rule.steps is None:
        count = int(random.integers(_MOST_STEPS))
    elif is_last or rule.steps == 1:
        count, is_last = rule.steps - 1, True
    else:
        count = int(random.integers(rule.steps - 1))
    counters = {**given.counters, ACCUMULATION_COUNT.name: float(count)}
    return replace(given, counters=counters, is_last=is_last)


def split(
    rule: Accumulation,
    given: Given,
    batches: Sequence[Batch],
    applied: Sequence[Array],
    random: np.random.Generator,
) -> Added:
    """Gradients and sums of which, once they are added up, the update sees these gradients.

    What is added has the sign of what it is added to, so that nothing is lost by it.

    Args:
        rule: How many steps are added up.
        given: What the step is given.
        batches: The parameters.
        applied: What is to be applied of each, times the loss scale.
        random: Makes up how a sum is split.
    """
    steps = int(given.counters[ACCUMULATION_COUNT.name])
    number = steps + 1 if rule.steps is None else rule.steps
    share = 1.0 if rule.reduction == "sum" else 1.0 / number
    made = Added([], [], [], [], share)
    for batch, gradient in zip(batches, applied, strict=True):
        total = gradient.astype(np.float64) / share
        part = random.uniform(_LEAST_PART, _LARGEST_PART, total.shape)
        made.before.append(_as(total * part / given.loss_scale, "float32"))
        made.gradients.append(_as(total * (1 - part), batch.rule.gradient_dtype))
        new = made.gradients[-1].astype(np.float64) / given.loss_scale
        old = made.before[-1].astype(np.float64) if steps else np.zeros_like(new)
        made.totals.append(old + new)
        made.off.append(_UNITS * _UNIT * (np.abs(old) + np.abs(new)) + _TINY)
    return made


def _as(array: Array, dtype: str) -> Array:
    limits = np.finfo(dtype)
    return np.clip(array, float(limits.min), float(limits.max)).astype(dtype)
