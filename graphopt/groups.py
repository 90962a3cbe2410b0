"""Parameter groups: which parameters share a learning rate and a weight decay, and their order."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from graphopt import _checks
from graphopt._slips import is_of_torch, kind_of, nearest
from graphopt.parameter import Parameter
from graphopt.schedules import LearningRateSchedule
from graphopt.schedules.base import Fixed, Listed
from graphopt.schedules.parse import checked_schedule, learning_rate as as_learning_rate

# Parameters of these dtypes can be updated; the arithmetic and the state are float32, of float64
# in float64.
_TRAINABLE = ("float32", "float16", "float64")
_RATES = ("lr", "learning_rate")  # two names of the same
_KEYS = ("params", *_RATES, "weight_decay", "grad_centralization")
_OF_ALL = ("decay", "momentum", "epsilon", "centered", "loss_scale", "clip_norm", "clip_value")


@dataclass(frozen=True)
class Group:
    """Parameters that are updated by the same rule.

    Attributes:
        params: The parameters.
        learning_rate: Their learning rate.
        weight_decay: The factor of each parameter that is added to its gradient.
        grad_centralization: Whether the mean is subtracted from gradients of convolution weights.
    """

    params: tuple[Parameter, ...]
    learning_rate: LearningRateSchedule
    weight_decay: LearningRateSchedule
    grad_centralization: bool = False


def read_groups(
    params: Any, learning_rate: LearningRateSchedule, weight_decay: LearningRateSchedule
) -> tuple[tuple[Group, ...], tuple[Parameter, ...], bool]:
    """What a user gives as ``params``, with the optimizer's own values as defaults.

    Returns:
        The groups; all parameters in the optimizer's order; whether there are groups at all, or
        one that holds everything.

    Raises:
        KeyError: A group has no ``params``, or a key that is unknown.
        TypeError: Something has the wrong type.
        ValueError: There is no parameter, one stands twice, a value is out of range, or a group
            has two keys for the same.
    """
    entries = _entries("params", params)
    if not any(isinstance(entry, dict) for entry in entries):
        checked = _parameters("params", entries)
        _check_once(checked)
        return (Group(checked, learning_rate, weight_decay),), checked, False
    order: tuple[Parameter, ...] = ()
    groups = []
    for index, entry in enumerate(entries):
        where = f"params[{index}]"
        if not isinstance(entry, dict):
            raise TypeError(
                f"{where}: got {type(entry).__name__}, expected a dict like the other groups"
            )
        if "order_params" in entry:
            order = _order(where, entry)
        else:
            groups.append(_group(where, entry, learning_rate, weight_decay))
    if not groups:
        raise ValueError("params: got order_params alone, expected at least one group")
    _check_lengths([learning_rate, *(group.learning_rate for group in groups)])
    grouped = tuple(parameter for group in groups for parameter in group.params)
    _check_once(grouped)
    return tuple(groups), _ordered(grouped, order), True


def _group(
    where: str,
    entry: dict[str, Any],
    learning_rate: LearningRateSchedule,
    weight_decay: LearningRateSchedule,
) -> Group:
    for key in entry:
        if key not in _KEYS:
            meant = nearest(str(key), _KEYS)
            remedy = f"did you mean '{meant}'?" if meant else f"expected {', '.join(_KEYS)}"
            raise KeyError(f"{where}: unknown key {key!r}, {remedy}{_shared(key)}")
    if "params" not in entry:
        raise KeyError(f"{where}: the group has no 'params'")
    rates = [key for key in _RATES if key in entry]
    if len(rates) > 1:
        raise ValueError(f"{where}: 'lr' and 'learning_rate' are the same; leave one of them out")
    for key in rates:
        learning_rate = as_learning_rate(f"{where}['{key}']", entry[key])
    if "weight_decay" in entry:
        weight_decay = as_weight_decay(f"{where}['weight_decay']", entry["weight_decay"])
    name = f"{where}['params']"
    return Group(
        _parameters(name, _entries(name, entry["params"])),
        learning_rate,
        weight_decay,
        _checks.boolean(f"{where}['grad_centralization']", entry.get("grad_centralization", False)),
    )


def _shared(key: Any) -> str:
    """A hint at what all groups have in common."""
    meant = nearest(str(key), _OF_ALL)
    return f"; '{meant}' is the same for all groups: an argument of RMSProp" if meant else ""


def as_weight_decay(name: str, value: Any) -> LearningRateSchedule:
    """A number or a schedule as a schedule.

    Raises:
        TypeError: Neither.
        ValueError: Negative, infinite or NaN.
    """
    if isinstance(value, LearningRateSchedule):
        return checked_schedule(name, value)
    return Fixed(_checks.at_least_zero(name, value))


def _entries(name: str, value: Any) -> list[Any]:
    expected = "expected a list of Parameter or of groups"
    if value is None:
        raise ValueError(f"{name}: got None, {expected}")
    if isinstance(value, Parameter | str | bytes | dict) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: got {type(value).__name__}, {expected}")
    entries = list(value)
    if not entries:
        used = ""
        if isinstance(value, Iterator):
            used = " (a generator gives what it has once only: make it a list before)"
        raise ValueError(f"{name}: got no parameter, expected at least one{used}")
    return entries


def _described(given: Any) -> str:
    if isinstance(given, str):
        return f"the str '{given}' (its Parameter is graphopt.parameters(model)['{given}'])"
    if isinstance(given, tuple) and any(map(is_of_torch, given)):
        given = next(filter(is_of_torch, given))
    if is_of_torch(given):
        return f"a {kind_of(given)} (export its module first, with graphopt.torch.export)"
    return type(given).__name__


def _parameters(name: str, entries: list[Any]) -> tuple[Parameter, ...]:
    for index, parameter in enumerate(entries):
        where = f"{name}[{index}]"
        if not isinstance(parameter, Parameter):
            raise TypeError(
                f"{where}: got {_described(parameter)}, expected a Parameter "
                "(graphopt.parameters(model) lists those of a model)"
            )
        if parameter.dtype not in _TRAINABLE:
            remedy = "convert the model first"
            if parameter.dtype == "bfloat16":
                remedy = "train graphopt.with_master_weights(model)"
            raise TypeError(
                f"{where}: parameter '{parameter.name}' has dtype {parameter.dtype}, expected "
                f"{', '.join(_TRAINABLE[:-1])} or {_TRAINABLE[-1]}; {remedy}"
            )
        if parameter.size == 0:
            raise ValueError(
                f"{where}: parameter '{parameter.name}' of shape {parameter.shape} has no "
                "elements; leave it out"
            )
    return tuple(entries)


def _check_once(params: Iterable[Parameter]) -> None:
    twice = [name for name, n in Counter(parameter.name for parameter in params).items() if n > 1]
    if twice:
        raise ValueError(f"params: these stand more than once: {', '.join(twice)}")


def _check_lengths(rates: Iterable[LearningRateSchedule]) -> None:
    lengths = sorted({len(rate.values) for rate in rates if isinstance(rate, Listed)})
    if len(lengths) > 1:
        raise ValueError(
            f"lr: got lists of {' and '.join(map(str, lengths))} learning rates, expected the "
            "same number of steps in all groups and in the optimizer's learning_rate"
        )


def _order(where: str, entry: dict[str, Any]) -> tuple[Parameter, ...]:
    name = f"{where}['order_params']"
    if len(entry) > 1:
        others = ", ".join(repr(key) for key in entry if key != "order_params")
        raise ValueError(f"{name}: stands with {others}, expected a dict of its own")
    order = entry["order_params"]
    if not isinstance(order, list | tuple):
        raise TypeError(f"{name}: got {type(order).__name__}, expected a list of Parameter")
    for index, parameter in enumerate(order):
        if not isinstance(parameter, Parameter):
            raise TypeError(
                f"{name}[{index}]: got {type(parameter).__name__}, expected a Parameter"
            )
    return tuple(order)


def _ordered(grouped: tuple[Parameter, ...], order: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    if not order:
        return grouped
    by_name = {parameter.name: parameter for parameter in grouped}
    names = [parameter.name for parameter in order]
    if sorted(names) != sorted(by_name):
        missing = [name for name in by_name if name not in names]
        foreign = [name for name in names if name not in by_name]
        twice = [name for name, n in Counter(names).items() if n > 1]
        problems = [
            f"{what} {', '.join(found)}"
            for what, found in (("lacks", missing), ("has ungrouped", foreign), ("repeats", twice))
            if found
        ]
        raise ValueError(
            f"order_params: {'; '.join(problems)}; expected each grouped parameter once"
        )
    return tuple(by_name[name] for name in names)
