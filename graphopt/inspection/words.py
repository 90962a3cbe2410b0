"""How facts are written for people: names, numbers, sizes, shapes and schedules."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt._words import UNKNOWN, number, shown
from graphopt.accumulation import Accumulation
from graphopt.average import ParameterAverage
from graphopt.inspection.facts import Schedule, Shape

_LONGEST_SCHEDULE = 160
_LONGEST_SCHEDULE_NAME = 24
_DEEPEST_SCHEDULE = 4
_MOST_PARTS = 4


def shape(dimensions: Shape | None) -> str:
    """Dimensions in brackets.

    Example:
        >>> shape(("N", 3, None)), shape(()), shape(None)
        ('[N, 3, ?]', '[]', '[...]')
    """
    if dimensions is None:
        return "[...]"
    return f"[{', '.join(UNKNOWN if d is None else shown(d, 20) for d in dimensions)}]"


def schedule(value: Schedule) -> str:
    """A learning rate or weight decay, short, with the arguments of a schedule in their order.

    Example:
        >>> schedule(0.1), schedule(None)
        ('0.1', '?')
        >>> schedule({"schedule": "CosineDecayLR", "min_lr": 0.0, "max_lr": 0.1,
        ...           "decay_steps": 100})
        'CosineDecayLR(0 .. 0.1, 100)'
        >>> schedule({"schedule": "list", "length": 100})
        'list of 100'
    """
    if not isinstance(value, Mapping):
        return number(value)
    return shown(_schedule(value, _DEEPEST_SCHEDULE), _LONGEST_SCHEDULE)


def schedule_name(value: Schedule) -> str:
    """A number, or the name of a schedule, without its arguments.

    Example:
        >>> schedule_name(0.1), schedule_name({"schedule": "WarmUpLR", "learning_rate": 0.1})
        ('0.1', 'WarmUpLR')
    """
    if not isinstance(value, Mapping):
        return number(value)
    return shown(value.get("schedule"), _LONGEST_SCHEDULE_NAME)


def _schedule(value: Any, depth: int) -> str:
    if not isinstance(value, Mapping):
        return number(value)
    if depth == 0:
        return "..."
    name, rest = value.get("schedule"), {k: v for k, v in value.items() if k != "schedule"}
    match name, rest:
        case "expression", {"formula": formula}:
            return shown(formula, _LONGEST_SCHEDULE)
        case "Fixed", {"constant": constant}:
            return number(constant)
        case "list", {"length": length}:
            return f"list of {number(length)}"
        case "FromCaller", {"input": fed}:
            return f"input '{shown(fed)}'"
        case "DynamicLossScale", {
            "growth_factor": growth,
            "backoff_factor": backoff,
            "growth_interval": steps,
        }:
            return _dynamic(growth, backoff, steps, rest)
        case "OnnxSchedule", _:
            return "OnnxSchedule"
        case "SequentialLR", {"schedules": [*parts], "milestones": [*milestones]} if (
            len(parts) == len(milestones) + 1
        ):
            return _sequence(parts, milestones, depth)
        case "CosineDecayLR", {"min_lr": least, "max_lr": most, "decay_steps": steps}:
            return f"CosineDecayLR({number(least)} .. {number(most)}, {number(steps)})"
        case "MultiStepLR", {"learning_rate": rate, "decay_rate": factor, "milestones": [*steps]}:
            places = [number(step) for step in steps[:_MOST_PARTS]]
            places += ["..."] * (len(steps) > _MOST_PARTS)
            return f"MultiStepLR({number(rate)}, {number(factor)}, at {', '.join(places)})"
        case "WarmUpLR", {"learning_rate": last, "warmup_steps": steps}:
            return f"WarmUpLR(0 .. {number(last)}, {number(steps)})"
        case "PolynomialDecayLR", {
            "learning_rate": first,
            "end_learning_rate": last,
            "decay_steps": steps,
            "power": power,
        }:
            again = ", update_decay_steps" if rest.get("update_decay_steps") else ""
            return (
                f"PolynomialDecayLR({number(first)} .. {number(last)}, {number(steps)}, "
                f"power {number(power)}{again})"
            )
        case _:
            return f"{shown(name)}({_arguments(rest)})"


def _dynamic(growth: Any, backoff: Any, steps: Any, rest: Mapping[str, Any]) -> str:
    start = f" from {number(rest['initial'])}" if "initial" in rest else ""
    after = "each step" if steps == 1 else f"{number(steps)} steps"
    words = [
        f"dynamic{start}",
        f"x{number(growth)} after {after}",
        f"x{number(backoff)} on overflow",
    ]
    words += [f"at least {number(rest['floor'])}"] if rest.get("floor") else []
    words += [f"at most {number(rest['ceiling'])}"] if rest.get("ceiling") is not None else []
    return ", ".join(words)


def loss_scale(value: Schedule) -> str:
    """A loss scale.

    Example:
        >>> loss_scale(1024.0), loss_scale({"schedule": "FromCaller", "input": "loss_scale"})
        ('1024', "fed as 'loss_scale'")
        >>> loss_scale({"schedule": "DynamicLossScale", "initial": 65536.0, "growth_factor": 2.0,
        ...             "backoff_factor": 0.5, "growth_interval": 2000})
        'dynamic from 65536, x2 after 2000 steps, x0.5 on overflow'
    """
    if isinstance(value, Mapping) and value.get("schedule") == "FromCaller":
        return f"fed as '{shown(value.get('input'))}'"
    return schedule(value)


def average(rule: ParameterAverage | None) -> str:
    """How averages of parameters move.

    Example:
        >>> average(ParameterAverage(0.99, warm_up=True))
        'decay 0.99 with warm-up'
    """
    if rule is None:
        return UNKNOWN
    also = ", of statistics too" if rule.statistics else ""
    return f"decay {number(rule.decay)}{' with warm-up' if rule.warm_up else ''}{also}"


def accumulation(rule: Accumulation | None) -> str:
    """After how many steps there is an update, and of what; "" where each is one.

    Example:
        >>> accumulation(Accumulation(4, "sum")), accumulation(Accumulation(None))
        ('applies the sum of 4 gradients', 'applies the mean of gradients when told')
    """
    if rule is None:
        return ""
    several = "gradients when told" if rule.steps is None else f"{rule.steps} gradients"
    return f"applies the {rule.reduction} of {several}"


def norms(per: str | None) -> str:
    """What the norms that are limited are over.

    Example:
        >>> norms("all"), norms("parameter")
        ('all gradients', 'the gradient of each parameter')
    """
    known = {
        "all": "all gradients",
        "group": "the gradients of each group",
        "parameter": "the gradient of each parameter",
    }
    return known.get(per or "", "some gradients")


def _sequence(parts: Sequence[Any], milestones: Sequence[Any], depth: int) -> str:
    words = [_schedule(parts[0], depth - 1)]
    for milestone, part in list(zip(milestones, parts[1:], strict=True))[: _MOST_PARTS - 1]:
        words.append(f"from {number(milestone)} {_schedule(part, depth - 1)}")
    if len(parts) > _MOST_PARTS:
        words.append(f"and {len(parts) - _MOST_PARTS} more")
    return ", ".join(words)


def _arguments(values: Mapping[str, Any]) -> str:
    """Numbers as they are, with their names only where they are not the usual first three."""
    usual = ("learning_rate", "decay_rate", "decay_steps")
    words = [number(values[key]) for key in usual if key in values]
    for key, value in values.items():
        if key in usual or value is False:
            continue
        words.append(shown(key) if value is True else f"{shown(key)}={_argument(value)}")
    return ", ".join(words[:8] + ["..."] * (len(words) > 8))


def _argument(value: object) -> str:
    return number(value) if isinstance(value, int | float | str | None) else "..."


def for_json(value: Any) -> Any:
    """A value with words for infinity and NaN, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: for_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(entry) for entry in value]
    return value
