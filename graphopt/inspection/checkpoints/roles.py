"""Which tensor of a checkpoint is a parameter, which its state, and which neither."""

from collections.abc import Iterable

from graphopt.inspection.checkpoints.contents import Opened
from graphopt.states import COUNTERS, LOSS_SCALE


def roles_of(
    opened: Opened, first: Iterable[str] = ()
) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """The names of the states of each parameter, by kind, and the tensors that are neither.

    Args:
        opened: The checkpoint.
        first: Parameters that come before all others.
    """
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
    return parameters, tuple(n for n in names if n not in taken and n not in parameters)


def kinds_of(opened: Opened) -> dict[str, str]:
    """What each tensor is; a parameter comes before its states, and everything else last."""
    parameters, others = roles_of(opened)
    kinds: dict[str, str] = {}
    for parameter, states in parameters.items():
        kinds[parameter] = "parameter"
        kinds |= {name: kind for kind, name in states.items()}
    scalars = {LOSS_SCALE.name: "loss scale"} | dict.fromkeys(COUNTERS, "counter")
    return kinds | {name: scalars.get(name, "other") for name in others}
