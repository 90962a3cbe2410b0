"""What a checkpoint of MindSpore has of ``mindspore.nn.RMSProp``, whose states are called as here.

It has no hyperparameters but learning rates, so that the others cannot be compared.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from graphopt import states
from graphopt.carried import Array
from graphopt.conversion._names import Places
from graphopt.conversion._settings import Own, Settings, value_at

MINDSPORE = "mindspore.nn.RMSProp"

_RATE = "learning_rate"
_KINDS = (states.MEAN_SQUARE, states.MEAN_GRAD, states.MOMENT)


def is_of_optimizer(tensors: Mapping[str, Array]) -> bool:
    """Whether there are states of RMSProp."""
    return bool(names_in(tensors))


def names_in(tensors: Mapping[str, Array]) -> list[str]:
    """The parameters of the optimizer, in its order."""
    split = (states.split(name, tensors) for name in tensors)
    return [parameter for kind, parameter in split if kind == states.MEAN_SQUARE.name]


def state_of(
    tensors: Mapping[str, Array], names: Mapping[str, str], places: Places
) -> tuple[dict[str, Array], int]:
    """The states of parameters as the graph has them, and the number of steps.

    Raises:
        ValueError: A state is missing, has another shape, or is one that the graph does not have.
    """
    found = {}
    for theirs, ours in names.items():
        for kind in _KINDS:
            name = kind.of(theirs)
            if places.has(kind):
                if name not in tensors:
                    raise ValueError(
                        f"the checkpoint has no '{name}'"
                        + (", so its optimizer is not centered" * (kind is states.MEAN_GRAD))
                    )
                found[kind.of(ours)] = places.ours(ours, tensors[name], f"'{name}'", kind)
            elif kind is states.MEAN_GRAD and name in tensors:
                raise ValueError(f"the checkpoint has '{name}': build the graph with centered=True")
    step = tensors.get(states.GLOBAL_STEP.name)
    if step is None or step.size != 1 or step.dtype.kind not in "iu":
        raise ValueError("the checkpoint has no global_step")
    return found, int(step.reshape(()))


def settings_of(tensors: Mapping[str, Array], own: Own) -> Settings:
    """What it says, and what MindSpore always does.

    Raises:
        ValueError: A learning rate is a list there, and another one in the graph.
    """
    settings = Settings(MINDSPORE, {"epsilon_inside_root": True})
    if own.optimizer.momentum:
        settings.common |= {"learning_rate_inside_moment": True, "nesterov": False}
    settings.common["decoupled_weight_decay"] = False
    for name, parameter in own.parameters.items():
        found = tensors.get(f"{_RATE}_group_{parameter.group}", tensors.get(_RATE))
        if found is None:
            continue  # a schedule, which has no value there
        if found.size == 1 and found.ndim == 0:
            settings.rates[name] = float(found)
        elif not isinstance(parameter.learning_rate, Mapping):
            raise ValueError(
                f"the checkpoint has {found.size} learning rates, and the graph one of '{name}': "
                f"build it with learning_rate=[{float(found.flat[0])}, ...]"
            )
    return settings


def tensors_of(
    state: Mapping[str, Array], own: Own, names: Mapping[str, str], places: Places
) -> dict[str, Array]:
    """The tensors of a checkpoint that goes on with a state of a session.

    Raises:
        ValueError: MindSpore cannot go on as the graph would.
    """
    problems = list(_inexpressible(own))
    if problems:
        raise ValueError(f"{MINDSPORE} cannot go on as this graph: {'; '.join(problems)}")
    step = int(state[states.GLOBAL_STEP.name])
    tensors: dict[str, Array] = {states.GLOBAL_STEP.name: np.array([step], np.int32)}
    rates = {p.group: value_at(p.learning_rate, step) for p in own.parameters.values()}
    fixed = {p.group for p in own.parameters.values() if not isinstance(p.learning_rate, Mapping)}
    for group, rate in sorted(rates.items()):
        if group in fixed:
            name = _RATE if len(rates) == 1 else f"{_RATE}_group_{group}"
            tensors[name] = np.array(rate, np.float32)
    for theirs, ours in names.items():
        tensors[theirs] = places.theirs(ours, state[ours])
    for kind in (states.MEAN_GRAD, states.MEAN_SQUARE, states.MOMENT):
        for theirs, ours in names.items():
            if places.has(kind):
                tensors[kind.of(theirs)] = places.theirs(ours, state[kind.of(ours)])
            elif kind is states.MOMENT:  # which it has without momentum too
                tensors[kind.of(theirs)] = np.zeros_like(tensors[theirs], np.float32)
    return tensors | {name: state[name] for name in places.statistics}


def _inexpressible(own: Own) -> Iterator[str]:
    optimizer = own.optimizer
    if not optimizer.epsilon_inside_root:
        yield "epsilon_inside_root is False in the graph"
    if optimizer.momentum and not optimizer.learning_rate_inside_moment:
        yield "learning_rate_inside_moment is False in the graph"
    for name in ("nesterov", "decoupled_weight_decay"):
        if getattr(optimizer, name):
            yield f"{name} is True in the graph"
