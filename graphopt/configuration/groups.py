"""Which parameters the groups of a configuration have."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from graphopt.configuration.reading import GROUPS, Configuration
from graphopt.parameter import Parameters

_SELECTING = ("params", "types", "ranks", "decays")
_OF_RULES = ("lr", "learning_rate", "weight_decay", "grad_centralization")


def trained(configuration: Configuration, parameters: Parameters) -> Parameters:
    """The parameters that are not frozen, in the order of the optimizer.

    Raises:
        ValueError: A pattern matches nothing, all are frozen, or the order has not all.
    """
    said = configuration.section("parameters")
    with configuration.naming("parameters"):
        kept = parameters.without(_matching("freeze", parameters, said.get("freeze", ())))
        if not kept:
            raise ValueError("freeze: got patterns of all parameters, expected some to train")
        if "order" not in said:
            return kept
        ordered = dict.fromkeys(
            parameter.name
            for pattern in said["order"]
            for parameter in _matching("order", kept, [pattern])
        )
        missing = [parameter.name for parameter in kept if parameter.name not in ordered]
        if missing:
            raise ValueError(f"order: lacks {_named(missing)}; expected each trained parameter")
        return Parameters(kept[name] for name in ordered)


def grouped(configuration: Configuration, parameters: Parameters) -> list[dict[str, Any]]:
    """The groups, as `RMSProp` takes them.

    Args:
        configuration: What says them.
        parameters: Those that are trained, each of which must be in exactly one.

    Raises:
        ValueError: A group selects nothing, or a parameter is in two groups or in none.
    """
    found: list[Parameters] = []
    for index, group in enumerate(configuration.groups):
        with _naming(configuration, index):
            found.append(_selected(group, parameters))
    rests = [index for index, group in enumerate(configuration.groups) if group.get("rest")]
    if len(rests) > 1:
        raise ValueError(_named_at(configuration, rests[1], "rest: the group before has the rest"))
    owners: dict[str, int] = {}
    for index, members in enumerate(found):
        for parameter in members:
            other = owners.setdefault(parameter.name, index)
            if other != index:
                said = f"has '{parameter.name}', which {GROUPS}[{other}] has too; see 'except'"
                raise ValueError(_named_at(configuration, index, said))
    left = Parameters(p for p in parameters if p.name not in owners)
    if rests and left:
        found[rests[0]] = left
    elif rests:
        said = "rest: there is nothing left for it; leave the group out"
        raise ValueError(_named_at(configuration, rests[0], said))
    elif left:
        raise ValueError(
            f"'{configuration.file}': {GROUPS}: {_named([p.name for p in left])} in no group; add "
            f"a group with rest = true, or name them in parameters.freeze"
        )
    groups: list[dict[str, Any]] = [
        {"params": list(members), **rule_of(group)}
        for members, group in zip(found, configuration.groups, strict=True)
    ]
    if "order" in configuration.section("parameters"):
        groups.append({"order_params": list(parameters)})
    return groups


def rule_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group says of how its parameters are trained, as `RMSProp` takes it."""
    return {key: value for key, value in group.items() if key in _OF_RULES}


def _selected(group: Mapping[str, Any], parameters: Parameters) -> Parameters:
    """What the keys of a group select; nothing of one that has the rest."""
    if "lr" in group and "learning_rate" in group:
        raise ValueError("lr: is the same as learning_rate; leave one of them out")
    keys = [key for key in (*_SELECTING, "except") if key in group]
    if group.get("rest"):
        if keys:
            raise ValueError(f"{keys[0]}: stands with rest = true; leave one of them out")
        return Parameters()
    if not any(key in group for key in _SELECTING):
        raise ValueError(f"selects nothing; expected {', '.join(_SELECTING)}, or rest = true")
    chosen = parameters
    if "params" in group:
        chosen = _matching("params", chosen, group["params"])
    if "types" in group:
        chosen = chosen.of_type(*group["types"])
    if "ranks" in group:
        chosen = chosen.of_rank(*group["ranks"])
    if "decays" in group:
        chosen = chosen.with_decay() if group["decays"] else chosen.without_decay()
    if "except" in group:
        chosen = chosen.without(_matching("except", parameters, group["except"]))
    if not chosen:
        raise ValueError("no parameter is all of what it selects")
    return chosen


def _matching(key: str, parameters: Parameters, patterns: Sequence[str]) -> Parameters:
    try:
        return parameters.matching(*patterns)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


@contextmanager
def _naming(configuration: Configuration, index: int) -> Iterator[None]:
    """Let errors name a group."""
    try:
        yield
    except ValueError as error:
        raise ValueError(_named_at(configuration, index, str(error))) from None


def _named_at(configuration: Configuration, index: int, said: str) -> str:
    dot = "." if said.partition(":")[0].isidentifier() and ":" in said else ": "
    return f"'{configuration.file}': {GROUPS}[{index}]{dot}{said}"


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
