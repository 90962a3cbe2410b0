"""Hyperparameters of another framework beside those of a graph."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphopt.fingerprint import shortened
from graphopt.graph import TrainingGraph
from graphopt.manifest import Manifest, OptimizerEntry, ParameterEntry
from graphopt.schedules import LearningRateSchedule
from graphopt.schedules.described import made_of

_CLOSE = 1e-6  # of each other: both are numbers in float32 where they are used


@dataclass
class Settings:
    """What an optimizer of another framework does, in the words of `RMSProp`.

    Attributes:
        framework: What it is called.
        common: The arguments that are the same for all parameters, as far as they are known.
        rates: The learning rate of each parameter, as far as it is known.
        decays: Its weight decay, likewise.
    """

    framework: str
    common: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    decays: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Own:
    """What the graph does.

    Attributes:
        optimizer: Its optimizer.
        parameters: Its parameters, by name.
    """

    optimizer: OptimizerEntry
    parameters: Mapping[str, ParameterEntry]

    @classmethod
    def of(cls, graph: TrainingGraph) -> "Own":
        """What a graph says.

        Raises:
            ValueError: It says nothing.
        """
        manifest = Manifest.read(graph.lean, "optimizer", "parameters")
        if manifest.optimizer is None or manifest.parameters is None:
            raise ValueError("the graph does not say what its optimizer is; build it anew")
        return cls(manifest.optimizer, {p.name: p for p in manifest.parameters})


def trained_by(graph: TrainingGraph) -> list[str]:
    """The parameters of a graph, in the order of its optimizer."""
    return list(Own.of(graph).parameters)


def check(settings: Settings, own: Own, step: int, what: str) -> list[str]:
    """Refuse a state that another update would go on with.

    Args:
        settings: The hyperparameters there.
        own: Those of the graph.
        step: The step at which the state is, for schedules.
        what: What the state is, for errors.

    Returns:
        What could not be compared, in words.

    Raises:
        ValueError: A hyperparameter is another one.
    """
    problems = [
        f"{name} is {value!r} there, and {getattr(own.optimizer, name)!r} in the graph"
        for name, value in settings.common.items()
        if not _same(value, getattr(own.optimizer, name))
    ]
    unknown = []
    for kind, values in (("learning_rate", settings.rates), ("weight_decay", settings.decays)):
        found: dict[str, list[str]] = {}
        for name, value in values.items():
            now = value_at(getattr(own.parameters[name], kind), step)
            if now is None:
                found.setdefault("", []).append(name)
            elif not _same(value, now):
                found.setdefault(f"{value!r} there, and {now!r} at step {step}", []).append(name)
        for text, names in found.items():
            where = f"{kind} of '{names[0]}'" + (f" and {len(names) - 1} more" * (len(names) > 1))
            if text:
                problems.append(f"{where} is {text} in the graph")
            else:
                unknown.append(f"{where} could not be compared: only the running graph knows it")
    centralized = [p.name for p in own.parameters.values() if p.grad_centralization]
    if centralized:
        problems.append(f"grad_centralization of '{centralized[0]}' is True in the graph only")
    if problems:
        raise ValueError(
            f"{what} does not go on in this graph as in {settings.framework}: "
            f"{shortened(problems)}. Build the graph with {_remedy(settings)}"
        )
    return unknown


def value_at(schedule: Any, step: int, fed: Mapping[str, float] | None = None) -> float | None:
    """The value of a learning rate or weight decay, as a manifest has it; None if not known."""
    made: LearningRateSchedule | None = made_of(schedule, fed or {})
    return None if made is None else made.value(step)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return math.isclose(one, other, rel_tol=_CLOSE)


def _remedy(settings: Settings) -> str:
    """The optimizer that goes on as there."""
    arguments = dict(settings.common)
    for name, values in (("learning_rate", settings.rates), ("weight_decay", settings.decays)):
        numbers = set(values.values())
        if len(numbers) == 1:
            arguments = {name: numbers.pop()} | arguments
    text = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    several = any(len(set(v.values())) > 1 for v in (settings.rates, settings.decays))
    decays = any(settings.decays.values())  # without groups, not of all parameters
    params = "groups" if several else "[{'params': params}]" if decays else "params"
    return f"graphopt.RMSProp({params}, {text})"
