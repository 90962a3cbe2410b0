"""The seven functions that make a list of learning rates, one for each step.

With i the step, ``e = floor(i / step_per_epoch)`` the epoch and E ``decay_epoch``. Each returns
``total_step`` floats.
"""

import math
from collections.abc import Callable, Sequence

from graphopt import _checks


def exponential_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    """``learning_rate * decay_rate^(e/E)``; with ``is_stair`` the exponent is floored.

    Raises:
        TypeError: A rate is not a float, or a number of steps not an int.
        ValueError: A rate is not positive, or a number of steps not at least 1.

    Example:
        >>> exponential_decay_lr(0.1, 0.5, total_step=4, step_per_epoch=2, decay_epoch=1)
        [0.1, 0.1, 0.05, 0.05]
    """
    _check_decay(learning_rate, decay_rate, decay_epoch, is_stair)
    return _by_epoch(
        lambda e: learning_rate * decay_rate ** _periods(e, decay_epoch, is_stair),
        total_step,
        step_per_epoch,
    )


def natural_exp_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    """``learning_rate * e^(-decay_rate * e)``; with ``is_stair`` e is a multiple of E.

    Raises:
        TypeError: A rate is not a float, or a number of steps not an int.
        ValueError: A rate is not positive, or a number of steps not at least 1.

    Example:
        >>> natural_exp_decay_lr(0.1, 0.9, 3, 1, 3, is_stair=True)
        [0.1, 0.1, 0.1]
    """
    _check_decay(learning_rate, decay_rate, decay_epoch, is_stair)
    return _by_epoch(
        lambda e: (
            learning_rate
            * math.exp(-decay_rate * (e // decay_epoch * decay_epoch if is_stair else e))
        ),
        total_step,
        step_per_epoch,
    )


def inverse_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    """``learning_rate / (1 + decay_rate * e/E)``; with ``is_stair`` e/E is floored.

    Raises:
        TypeError: A rate is not a float, or a number of steps not an int.
        ValueError: A rate is not positive, or a number of steps not at least 1.

    Example:
        >>> inverse_decay_lr(0.1, 1.0, total_step=2, step_per_epoch=1, decay_epoch=1)
        [0.1, 0.05]
    """
    _check_decay(learning_rate, decay_rate, decay_epoch, is_stair)
    return _by_epoch(
        lambda e: learning_rate / (1 + decay_rate * _periods(e, decay_epoch, is_stair)),
        total_step,
        step_per_epoch,
    )


def cosine_decay_lr(
    min_lr: float, max_lr: float, total_step: int, step_per_epoch: int, decay_epoch: int
) -> list[float]:
    """``min_lr + (max_lr - min_lr)/2 * (1 + cos(pi * min(e,E)/E))``.

    Raises:
        TypeError: A rate is not a float, or a number of steps not an int.
        ValueError: A value is out of range, or ``min_lr`` is not less than ``max_lr``.

    Example:
        >>> cosine_decay_lr(0.0, 0.1, total_step=3, step_per_epoch=1, decay_epoch=2)
        [0.1, 0.05, 0.0]
    """
    _checks.rate("min_lr", min_lr, allow_zero=True)
    _checks.rate("max_lr", max_lr)
    _checks.steps("decay_epoch", decay_epoch)
    if min_lr >= max_lr:
        raise ValueError(f"min_lr: got {min_lr}, expected less than max_lr={max_lr}")
    return _by_epoch(
        lambda e: (
            min_lr
            + (max_lr - min_lr) / 2 * (1 + math.cos(math.pi * min(e, decay_epoch) / decay_epoch))
        ),
        total_step,
        step_per_epoch,
    )


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

    Raises:
        TypeError: A rate is not a float, or a number of steps not an int.
        ValueError: A value is out of range.

    Example:
        >>> polynomial_decay_lr(0.1, 0.0, 3, 1, decay_epoch=2, power=1.0)
        [0.1, 0.05, 0.0]
    """
    _checks.rate("learning_rate", learning_rate)
    _checks.rate("end_learning_rate", end_learning_rate, allow_zero=True)
    _checks.steps("decay_epoch", decay_epoch)
    _checks.rate("power", power)
    _checks.boolean("update_decay_epoch", update_decay_epoch)

    def value(e: int) -> float:
        end = (
            decay_epoch * max(math.ceil(e / decay_epoch), 1) if update_decay_epoch else decay_epoch
        )
        part = 1 - min(e, end) / end
        return float((learning_rate - end_learning_rate) * part**power + end_learning_rate)

    return _by_epoch(value, total_step, step_per_epoch)


def warmup_lr(
    learning_rate: float, total_step: int, step_per_epoch: int, warmup_epoch: int
) -> list[float]:
    """``learning_rate * min(e,W)/W``, with W ``warmup_epoch``.

    Raises:
        TypeError: The rate is not a float, or a number of steps not an int.
        ValueError: A value is out of range.

    Example:
        >>> warmup_lr(0.1, total_step=4, step_per_epoch=2, warmup_epoch=1)
        [0.0, 0.0, 0.1, 0.1]
    """
    _checks.rate("learning_rate", learning_rate, allow_zero=True)
    _checks.steps("warmup_epoch", warmup_epoch)
    return _by_epoch(
        lambda e: learning_rate * min(e, warmup_epoch) / warmup_epoch, total_step, step_per_epoch
    )


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


def _check_decay(learning_rate: float, decay_rate: float, decay_epoch: int, is_stair: bool) -> None:
    _checks.rate("learning_rate", learning_rate)
    _checks.rate("decay_rate", decay_rate)
    _checks.steps("decay_epoch", decay_epoch)
    _checks.boolean("is_stair", is_stair)


def _periods(epoch: int, decay_epoch: int, is_stair: bool) -> float:
    return epoch // decay_epoch if is_stair else epoch / decay_epoch


def _by_epoch(value: Callable[[int], float], total_step: int, step_per_epoch: int) -> list[float]:
    _checks.steps("total_step", total_step)
    _checks.steps("step_per_epoch", step_per_epoch)
    return [value(step // step_per_epoch) for step in range(total_step)]
