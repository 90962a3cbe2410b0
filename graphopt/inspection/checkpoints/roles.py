"""Which tensor of a checkpoint is a parameter, which its state, and which neither."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphopt.inspection.checkpoints.contents import Opened


@dataclass(frozen=True)
class _Roles:
    """Which tensor is what.

    Attributes:
        parameters: The names of the states of each parameter, by kind.
        others: The tensors that are neither.
    """

    parameters: Mapping[str, Mapping[str, str]]
    others: tuple[str, ...]


def roles_of(opened: Opened, first: Iterable[str] = ()) -> _Roles:
    """Which tensor is what; these parameters come first."""
    names = dict.fromkeys(opened.names)
    found = opened.trainable
    if found is None:
        found = tuple(n for n in names if any(f"{kind}.{n}" in names for kind in opened.kinds))
    ordered = dict.fromkeys([name for name in first if name in names] + list(found))
    parameters = {
        parameter: {
            kind: f"{kind}.{parameter}" for kind in opened.kinds if f"{kind}.{parameter}" in names
        }
        for parameter in ordered
    }
    taken = {name for states in parameters.values() for name in states.values()}
    others = (name for name in names if name not in taken and name not in parameters)
    return _Roles(parameters, tuple(others))


def kinds_of(opened: Opened) -> dict[str, str]:
    """What each tensor is; a parameter comes before its states, and everything else last."""
    roles = roles_of(opened)
    kinds: dict[str, str] = {}
    for parameter, states in roles.parameters.items():
        kinds[parameter] = "parameter"
        kinds |= {name: kind for kind, name in states.items()}
    return kinds | dict.fromkeys(roles.others, "other")
