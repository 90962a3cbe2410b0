"""The ``state_dict`` of ``torch.optim.RMSprop`` and of timm's ``RMSpropTF``.

Both keep the same states under the same names. They differ in hyperparameters, and in what the mean
square starts at.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from graphopt import states
from graphopt.carried import Array
from graphopt.conversion._names import Places, plain_array
from graphopt.conversion._settings import Own, Settings, value_at
from graphopt.manifest import ParameterEntry

TORCH, TIMM = "torch.optim.RMSprop", "timm.optim.RMSpropTF"

_STATES = {
    "square_avg": states.MEAN_SQUARE,
    "grad_avg": states.MEAN_GRAD,
    "momentum_buffer": states.MOMENT,
}
_OPTIONAL = {states.MEAN_GRAD: "centered", states.MOMENT: "momentum"}
_NEEDED = ("lr", "alpha", "eps", "momentum", "centered", "weight_decay", "params")
_OTHER = {"maximize": "minimize the negative loss", "caution": "train without it"}


class Given(NamedTuple):
    """A parameter of an optimizer, and its group."""

    key: Any
    name: str | None
    group: Mapping[str, Any]


def is_state_dict(value: Any) -> bool:
    """Whether something is the state of an optimizer of PyTorch."""
    return isinstance(value, Mapping) and {"state", "param_groups"} <= value.keys()


def parameters_of(state_dict: Mapping[str, Any]) -> list[Given]:
    """Its parameters, in its order.

    Raises:
        ValueError: It is not the state of such an optimizer.
    """
    given = []
    for group in _groups(state_dict):
        names = group.get("param_names") or [None] * len(group["params"])
        if len(names) != len(group["params"]):
            raise ValueError("a group of the optimizer has other numbers of parameters and names")
        given += [Given(key, name, group) for key, name in zip(group["params"], names, strict=True)]
    keys = [parameter.key for parameter in given]
    if len(set(map(str, keys))) < len(keys):
        raise ValueError("the optimizer has a parameter twice")
    return given


def settings_of(given: Mapping[str, Given]) -> Settings:
    """The hyperparameters of parameters, by their names in the graph.

    Raises:
        ValueError: There are some that a graph does not have.
    """
    groups = [parameter.group for parameter in given.values()]
    is_timm = "decoupled_decay" in groups[0]
    settings = Settings(TIMM if is_timm else TORCH)
    for name, (_, _, group) in given.items():
        common = _common(group, is_timm=is_timm)
        if common != {key: settings.common.get(key, value) for key, value in common.items()}:
            raise ValueError(
                "the groups of the optimizer have different hyperparameters other than lr and "
                "weight_decay, which a graph cannot have"
            )
        settings.common |= common
        settings.rates[name] = _number(group["lr"], "lr")
        settings.decays[name] = _number(group["weight_decay"], "weight_decay")
    return settings


def state_of(
    given: Mapping[str, Given], state: Any, settings: Settings, places: Places
) -> tuple[dict[str, Array], int]:
    """The states of parameters as the graph has them, and the number of steps.

    Args:
        given: The parameters, by their names in the graph.
        state: The entry ``state``.
        settings: The hyperparameters, which are those of the graph.
        places: What the graph carries.

    Raises:
        ValueError: A state is missing, or has another shape.
    """
    if not isinstance(state, Mapping):
        raise ValueError("the state of the optimizer is not by parameter")
    found: dict[str, Array] = {}
    without = [name for name, parameter in given.items() if not state.get(parameter.key)]
    if without and len(without) < len(given):
        raise ValueError(
            f"the optimizer has no state of '{without[0]}', because its gradient was None, and "
            "goes on without updating it; build the graph without it, or freeze it"
        )
    step = 0
    start = 1.0 if settings.framework == TIMM else 0.0
    for name, parameter in given.items():
        own = state.get(parameter.key) or {}
        step = max(step, _step(own.get("step", 0), name))
        for key, kind in _STATES.items():
            if not places.has(kind):
                continue
            array = plain_array(own.get(key)) if own else None
            if own and array is None:
                raise ValueError(f"the optimizer has no '{key}' of '{name}'")
            if array is None:
                value = start if kind is states.MEAN_SQUARE else 0.0
                shape, dtype = places.shapes[kind.of(name)]
                found[kind.of(name)] = np.full(shape, value, dtype)
            else:
                what = f"'{key}' of '{name}'"
                found[kind.of(name)] = places.ours(name, array, what, kind)
    return found, step


def state_dict_of(
    state: Mapping[str, Array],
    own: Own,
    names: Mapping[str, str],
    places: Places,
    framework: str,
    fed: Mapping[str, float],
) -> dict[str, Any]:
    """The ``state_dict`` of an optimizer that goes on with a state of a session.

    Args:
        state: That of the session.
        own: The hyperparameters of the graph.
        names: The parameters of the optimizer, in its order, and what the graph calls each.
        places: What the graph carries.
        framework: `TORCH` or `TIMM`.
        fed: The values of learning rates and weight decays that the caller feeds.

    Raises:
        ValueError: The framework cannot go on as the graph would.
    """
    problems = list(_inexpressible(own, framework))
    if problems:
        raise ValueError(
            f"{framework} cannot go on as this graph: {'; '.join(problems)}; build the graph with "
            "what it has"
        )
    step = int(state[states.GLOBAL_STEP.name])
    groups: list[dict[str, Any]] = []
    before: Any = None
    for index, (theirs, ours) in enumerate(names.items()):
        entry = own.parameters[ours]
        values = _now(entry, step, fed)
        if (entry.group, *values) != before:
            before = (entry.group, *values)
            groups.append(_group(own, framework, *values) | {"params": [], "param_names": []})
        groups[-1]["params"].append(index)
        groups[-1]["param_names"].append(theirs)
    kinds = {key: kind for key, kind in _STATES.items() if places.has(kind)}
    entries = {
        index: {"step": np.array(step, np.float32)}
        | {key: places.theirs(ours, state[kind.of(ours)]) for key, kind in kinds.items()}
        for index, ours in enumerate(names.values())
    }
    return {"state": entries, "param_groups": groups}


def _groups(state_dict: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = state_dict["param_groups"]
    if not isinstance(groups, list) or not groups:
        raise ValueError("the optimizer has no groups of parameters")
    for group in groups:
        lacking = [name for name in _NEEDED if not isinstance(group, Mapping) or name not in group]
        if lacking or not isinstance(group["params"], list):
            raise ValueError(
                f"it is the state of another optimizer than {TORCH} and {TIMM}: a group has no "
                f"'{lacking[0] if lacking else 'params'}'"
            )
    return groups


def _common(group: Mapping[str, Any], *, is_timm: bool) -> dict[str, Any]:
    for name, remedy in _OTHER.items():
        if group.get(name):
            raise ValueError(f"the optimizer has {name}=True, which a graph does not; {remedy}")
    decays = _number(group["weight_decay"], "weight_decay") != 0
    decoupled = bool(group.get("decoupled_decay", False))
    if decays and decoupled and group.get("corrected_weight_decay"):
        raise ValueError(
            "the optimizer has corrected_weight_decay=True, which a graph has as a schedule only"
        )
    momentum = _number(group["momentum"], "momentum")
    common: dict[str, Any] = {
        "decay": _number(group["alpha"], "alpha"),
        "momentum": momentum,
        "epsilon": _number(group["eps"], "eps"),
        "centered": bool(group["centered"]),
        "epsilon_inside_root": is_timm,
    }
    if momentum:
        inside = bool(group.get("lr_in_momentum", True)) if is_timm else False
        common |= {"learning_rate_inside_moment": inside, "nesterov": False}
    if decays:
        common["decoupled_weight_decay"] = decoupled
    return common


def _inexpressible(own: Own, framework: str) -> Iterator[str]:
    """What the graph does and the framework does not."""
    optimizer = own.optimizer
    is_timm = framework == TIMM
    if optimizer.epsilon_inside_root != is_timm:
        yield f"epsilon_inside_root is {optimizer.epsilon_inside_root} in the graph"
    if optimizer.nesterov:
        yield "nesterov is True in the graph"
    if not is_timm and optimizer.momentum and optimizer.learning_rate_inside_moment:
        yield "learning_rate_inside_moment is True in the graph"
    decays = any(p.weight_decay != 0 for p in own.parameters.values())
    if not is_timm and decays and optimizer.decoupled_weight_decay:
        yield "decoupled_weight_decay is True in the graph"
    centralized = [p.name for p in own.parameters.values() if p.grad_centralization]
    if centralized:
        yield f"grad_centralization of '{centralized[0]}' is True in the graph"


def _now(entry: ParameterEntry, step: int, fed: Mapping[str, float]) -> tuple[float, float]:
    values = []
    for kind in ("learning_rate", "weight_decay"):
        value = value_at(getattr(entry, kind), step, fed)
        if value is None:
            raise ValueError(
                f"the {kind} of '{entry.name}' at step {step} is known to the running graph only; "
                "say what the caller feeds with fed={name: value}, or build the graph with a number"
            )
        values.append(value)
    return values[0], values[1]


def _group(own: Own, framework: str, rate: float, decay: float) -> dict[str, Any]:
    optimizer = own.optimizer
    group: dict[str, Any] = {
        "lr": rate,
        "momentum": optimizer.momentum,
        "alpha": optimizer.decay,
        "eps": optimizer.epsilon,
        "centered": optimizer.centered,
        "weight_decay": decay,
        "foreach": None,
    }
    if framework == TORCH:
        return group | {"capturable": False, "maximize": False, "differentiable": False}
    return group | {
        "decoupled_decay": optimizer.decoupled_weight_decay,
        "corrected_weight_decay": False,
        "max_lr_snapshot": None,
        "lr_in_momentum": optimizer.learning_rate_inside_moment,
        "caution": False,
    }


def _number(value: Any, name: str) -> float:
    array = plain_array(value)
    if array is not None and array.size == 1:
        value = array.reshape(()).item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the optimizer has {name}={type(value).__name__}, expected a number")
    return float(value)


def _step(value: Any, name: str) -> int:
    number = _number(value, "step")
    if number < 0 or not number.is_integer():
        raise ValueError(f"the optimizer has taken {number} steps with '{name}'")
    return int(number)
