"""How facts are written for people: names, numbers, sizes, shapes and schedules."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.inspection.facts import Schedule, Shape

UNKNOWN = "?"
"""What stands for something that is not known."""

_LONGEST_NAME = 80
_LONGEST_SCHEDULE = 160
_LONGEST_SCHEDULE_NAME = 24
_DEEPEST_SCHEDULE = 4
_MOST_PARTS = 4


def shown(name: object, longest: int = _LONGEST_NAME) -> str:
    r"""A name from a file, safe to print: one line, no control characters, not too long.

    Args:
        name: The name; what is no text is written as Python writes it.
        longest: The most characters; of a longer name its middle is left out.

    Example:
        >>> shown("conv1.weight"), shown("red\x1b[31m")
        ('conv1.weight', 'red\\x1b[31m')
        >>> shown("a" * 100, longest=11)
        'aaa...aaaaa'
    """
    text = name if isinstance(name, str) else repr(name)
    if len(text) > longest:
        tail = (longest - 3) * 2 // 3
        text = f"{text[: longest - 3 - tail]}...{text[len(text) - tail :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def number(value: object) -> str:
    """A number, with six digits at most.

    Example:
        >>> number(0.002), number(1e-10), number(1024.0), number(None)
        ('0.002', '1e-10', '1024', '?')
    """
    if value is None:
        return UNKNOWN
    if isinstance(value, bool) or not isinstance(value, int | float):
        return shown(value)
    if isinstance(value, int) and abs(value) < 10**15:
        return str(value)
    try:
        return f"{value:.6g}"
    except OverflowError:
        return "inf" if value > 0 else "-inf"


def size(count: int | None) -> str:
    """A number of bytes.

    Example:
        >>> size(12), size(1536), size(5 * 2**20), size(None)
        ('12 B', '1.5 KiB', '5.0 MiB', '?')
    """
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))


def count(amount: int | None) -> str:
    """A number of operations or elements.

    Example:
        >>> count(999), count(1234567), count(None)
        ('999', '1.2 M', '?')
    """
    return _scaled(amount, 1000, ("", "k", "M", "G", "T", "P", "E")).rstrip()


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


def _scaled(amount: float | None, base: int, units: Sequence[str]) -> str:
    """The amount in the largest unit of which there is at least one."""
    if amount is None:
        return UNKNOWN
    if abs(amount) < base:
        return f"{amount} {units[0]}"
    for power, unit in enumerate(units):
        scaled = amount / base**power
        if math.floor(abs(scaled) * 10 + 0.5) < base * 10:
            return f"{scaled:.1f} {unit}"
    return f"{number(amount)} {units[0]}"


def for_json(value: Any) -> Any:
    """A value with words for infinity and NaN, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: for_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(entry) for entry in value]
    return value
