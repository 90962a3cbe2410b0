"""A parameter that is trained, and what is done to the gradients of all of them first."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from graphopt.inspection.facts import OptimizerFacts, ParameterFacts, Schedule
from graphopt.inspection.reading import rates
from graphopt.inspection.reading.conditions import checked
from graphopt.inspection.reading.counters import Counters
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.scaling import UNSCALED, Scaling, squared
from graphopt.inspection.reading.update import Update
from graphopt.inspection.reading.writes import Write
from graphopt.states import LOSS_SCALE


@dataclass(frozen=True)
class Trained:
    """A parameter, and how the graph updates it.

    Attributes:
        facts: What is known of it.
        update: The update of its bucket.
        write: The input and the output of the bucket.
        gradient: Its gradient.
        rate: Its learning rate.
        factor: That of its weight decay, if it has any.
        scaling: What is done to its gradient before the update.
        total: The sum of its gradients of several steps, maybe beside those of others.
        share: What that is multiplied by.
    """

    facts: ParameterFacts
    update: Update
    write: Write
    gradient: Value | None
    rate: Value | None
    factor: Value | None
    scaling: Scaling = UNSCALED
    total: Value | None = None
    share: Value | None = None

    @property
    def normed(self) -> Value | None:
        """Of what a norm is taken that limits its gradient."""
        return self.gradient if self.total is None else self.total


def scaled(
    optimizer: OptimizerFacts, trained: Sequence[Trained], counted: Counters
) -> OptimizerFacts:
    """An optimizer with what is done to its gradients first."""
    if not trained or optimizer.name != "RMSProp":
        return optimizer
    first = trained[0].scaling
    scale: Schedule | None = optimizer.loss_scale
    if isinstance(first.loss_scale, Value):
        scale = counted.rule or rates.schedule_of(first.loss_scale, None)
        carries_it = LOSS_SCALE.name in counted.writes
        if isinstance(scale, Mapping) and scale["schedule"] == "FromCaller" and carries_it:
            scale = {"schedule": "expression", "formula": first.loss_scale.name}
    elif first.loss_scale is not None:
        scale = first.loss_scale
    return replace(
        optimizer,
        loss_scale=scale,
        skip_on_overflow=all(parameter.update.condition.finite for parameter in trained),
        clip_norm=first.clip_norm,
        clip_norm_per="all" if first.clip_norm is None else _norms_are_over(trained),
        clip_value=first.clip_value,
    )


def _norms_are_over(trained: Sequence[Trained]) -> str | None:
    """What each norm is over: "all", "group", "parameter", or "other" gradients."""
    sets = norm_sets(trained)
    if sets is None:
        return "other"
    if len(sets) == 1:
        return "all"
    return "parameter" if all(len(names) == 1 for names in sets) else "group"


def norm_sets(trained: Sequence[Trained]) -> set[frozenset[str]] | None:
    """The parameters whose gradients have a norm in common.

    Returns:
        None where the norm that limits a gradient is not that of those that it limits.
    """
    limits: dict[int, tuple[Value, list[Trained]]] = {}
    for parameter in trained:
        norm = parameter.scaling.norm
        if norm is None or parameter.normed is None:
            return None
        limits.setdefault(id(norm), (norm, []))[1].append(parameter)
    taken: set[int] = set()
    for norm, limited in limits.values():
        over, alone = squared(norm), len(limited) == 1
        if over is None:
            return None
        found = Counter((_elements(g), None if alone else e) for g, e in over)
        for whole in (False, True):
            values = {_normed_as(p, whole): p.update.condition.entry for p in limited}
            parts = set().union(*(parts for _, parts in values))
            wanted = Counter((v, None if alone else entry) for (v, _), entry in values.items())
            if found == wanted and taken.isdisjoint(parts):
                taken |= parts
                break
        else:
            return None
    return {frozenset(p.facts.name for p in limited) for _, limited in limits.values()}


def _normed_as(parameter: Trained, whole: bool) -> tuple[int, frozenset[int]]:
    """What a norm is taken of, and its parts: a sum of a bucket, or what a parameter has of it."""
    value = parameter.normed
    assert value is not None
    made = value.source.operation
    if whole and parameter.total is not None and made is not None and made.op_type == "Split":
        assert made.inputs[0] is not None
        return _elements(made.inputs[0]), frozenset(map(_elements, made.outputs))
    return _elements(value), frozenset([_elements(value)])


def unchecked(trained: Sequence[Trained]) -> tuple[str, ...]:
    """Parameters whose gradient is not looked at where those of others are."""
    known: dict[int, set[int]] = {}
    seen: list[set[int]] = []
    for parameter in trained:
        flags = parameter.update.condition.finite
        for flag in flags:
            if id(flag) not in known:
                known[id(flag)] = {_elements(value) for value in checked(flag)}
        seen.append(set().union(*(known[id(flag)] for flag in flags)))
    common = set.intersection(*(found for found in seen if found)) if any(seen) else None
    if common is None:
        return ()
    return tuple(
        parameter.facts.name
        for parameter, found in zip(trained, seen, strict=True)
        if parameter.gradient is None or _elements(parameter.gradient) not in common
    )


def _elements(value: Value) -> int:
    """What is the same for values of the same elements in any order, as sums do not mind."""
    value = value.source
    while (made := value.operation) is not None and made.op_type == "Transpose" and made.inputs[0]:
        value = made.inputs[0].source
    return id(value)
