"""The seven functions that make a list of learning rates, one for each step.

With i the step, ``e = floor(i / step_per_epoch)`` the epoch and E ``decay_epoch``. Each returns
the values of the schedule of that name, with epochs for its steps.
"""

import math
from collections.abc import Callable, Sequence

from graphopt import _checks
from graphopt.schedules._decays import (
    CosineDecayLR,
    ExponentialDecayLR,
    InverseDecayLR,
    NaturalExpDecayLR,
    PolynomialDecayLR,
    WarmUpLR,
)


def exponential_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    """``learning_rate * decay_rate^(e/E)``; with ``is_stair`` the exponent is floored.

    Args:
        learning_rate: The value in epoch 0, a float > 0.
        decay_rate: A float > 0.
        total_step: How many steps there are, an int >= 1.
        step_per_epoch: How many of them an epoch has, an int >= 1.
        decay_epoch: E, an int >= 1.
        is_stair: Change every E epochs instead of at each.

    Returns:
        ``total_step`` floats.

    Raises:
        TypeError: A rate is not a float, or a number of steps not an int.
        ValueError: A rate is not positive, or a number of steps not at least 1.

    Example:
        >>> exponential_decay_lr(0.1, 0.5, total_step=4, step_per_epoch=2, decay_epoch=1)
        [0.1, 0.1, 0.05, 0.05]
    """
    _checks.steps("decay_epoch", decay_epoch)
    schedule = ExponentialDecayLR(learning_rate, decay_rate, decay_epoch, is_stair)
    return _by_epoch(schedule.value, total_step, step_per_epoch)


def natural_exp_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    """``learning_rate * e^(-decay_rate * e)``; with ``is_stair`` e is a multiple of E.

    Arguments and errors are those of `exponential_decay_lr`.

    Example:
        >>> natural_exp_decay_lr(0.1, 0.9, 3, 1, 3, is_stair=True)
        [0.1, 0.1, 0.1]
    """
    _checks.steps("decay_epoch", decay_epoch)
    schedule = NaturalExpDecayLR(learning_rate, decay_rate, decay_epoch, is_stair)
    return _by_epoch(schedule.value, total_step, step_per_epoch)


def inverse_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    """``learning_rate / (1 + decay_rate * e/E)``; with ``is_stair`` e/E is floored.

    Arguments and errors are those of `exponential_decay_lr`.

    Example:
        >>> inverse_decay_lr(0.1, 1.0, total_step=2, step_per_epoch=1, decay_epoch=1)
        [0.1, 0.05]
    """
    _checks.steps("decay_epoch", decay_epoch)
    schedule = InverseDecayLR(learning_rate, decay_rate, decay_epoch, is_stair)
    return _by_epoch(schedule.value, total_step, step_per_epoch)


def cosine_decay_lr(
    min_lr: float, max_lr: float, total_step: int, step_per_epoch: int, decay_epoch: int
) -> list[float]:
    """``min_lr + (max_lr - min_lr)/2 * (1 + cos(pi * min(e,E)/E))``.

    Arguments and errors are those of `CosineDecayLR` and `exponential_decay_lr`.

    Example:
        >>> cosine_decay_lr(0.0, 0.1, total_step=3, step_per_epoch=1, decay_epoch=2)
        [0.1, 0.05, 0.0]
    """
    _checks.steps("decay_epoch", decay_epoch)
    CosineDecayLR(min_lr, max_lr, decay_epoch)  # checks the rates

    def value(epoch: int) -> float:
        # As MindSpore's list has it; the schedule's own form rounds differently.
        cosine = math.cos(math.pi * min(epoch, decay_epoch) / decay_epoch)
        return min_lr + (max_lr - min_lr) / 2 * (1 + cosine)

    return _by_epoch(value, total_step, step_per_epoch)


def polynomial_decay_lr(
    learning_rate: float,
    end_learning_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    power: float,
    update_decay_epoch: bool = False,
) -> list[float]:
    """``(learning_rate - end_learning_rate) * (1 - min(e,E)/E)^power + end_learning_rate``.

    With ``update_decay_epoch`` E grows to ``E * max(ceil(e/E), 1)``.

    Arguments and errors are those of `PolynomialDecayLR` and `exponential_decay_lr`.

    Example:
        >>> polynomial_decay_lr(0.1, 0.0, 3, 1, decay_epoch=2, power=1.0)
        [0.1, 0.05, 0.0]
    """
    _checks.steps("decay_epoch", decay_epoch)
    _checks.boolean("update_decay_epoch", update_decay_epoch)
    schedule = PolynomialDecayLR(
        learning_rate, end_learning_rate, decay_epoch, power, update_decay_epoch
    )
    return _by_epoch(schedule.value, total_step, step_per_epoch)


def warmup_lr(
    learning_rate: float, total_step: int, step_per_epoch: int, warmup_epoch: int
) -> list[float]:
    """``learning_rate * min(e,W)/W``, with W ``warmup_epoch``.

    Arguments and errors are those of `WarmUpLR` and `exponential_decay_lr`.

    Example:
        >>> warmup_lr(0.1, total_step=4, step_per_epoch=2, warmup_epoch=1)
        [0.0, 0.0, 0.1, 0.1]
    """
    _checks.steps("warmup_epoch", warmup_epoch)
    return _by_epoch(WarmUpLR(learning_rate, warmup_epoch).value, total_step, step_per_epoch)


def piecewise_constant_lr(milestone: Sequence[int], learning_rates: Sequence[float]) -> list[float]:
    """``learning_rates[k]`` on the steps from ``milestone[k-1]`` to before ``milestone[k]``.

    Returns:
        ``milestone[-1]`` floats.

    Raises:
        TypeError: A milestone is not an int, a rate not a float, or an argument not a list.
        ValueError: The lists are empty or of different lengths, the milestones do not grow, or a
            rate is negative.

    Example:
        >>> piecewise_constant_lr([1, 3], [0.1, 0.01])
        [0.1, 0.01, 0.01]
    """
    for name, value in (("milestone", milestone), ("learning_rates", learning_rates)):
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name}: got {type(value).__name__}, expected a list or a tuple")
    if not milestone or len(milestone) != len(learning_rates):
        raise ValueError(
            f"milestone: got {len(milestone)} for {len(learning_rates)} learning rates, "
            "expected as many, and at least one"
        )
    values: list[float] = []
    for end, rate in zip(milestone, learning_rates, strict=True):
        _checks.steps("milestone", end)
        _checks.rate("learning_rates", rate, allow_zero=True)
        if end <= len(values):
            raise ValueError(f"milestone: got {list(milestone)}, expected growing steps")
        values += [rate] * (end - len(values))
    return values


def _by_epoch(value: Callable[[int], float], total_step: int, step_per_epoch: int) -> list[float]:
    """A value for each step, which depends on its epoch."""
    _checks.steps("total_step", total_step)
    _checks.steps("step_per_epoch", step_per_epoch)
    return [value(step // step_per_epoch) for step in range(total_step)]
