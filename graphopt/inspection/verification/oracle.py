"""The oracle: `graphopt.reference` with what was recognised, and how far rounding may lead off."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.builder import GraphBuilder
from graphopt.inspection.facts import OptimizerFacts, Schedule
from graphopt.inspection.reading import scalars
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.verification.batches import PARAMETER, Array, Updated
from graphopt.inspection.verification.runnable import RunnableUpdate
from graphopt.parameter import Parameter
from graphopt.reference import ReferenceRMSProp
from graphopt.rmsprop import RMSProp
from graphopt.schedules import LearningRateSchedule
from graphopt.schedules.base import Fixed
from graphopt.schedules.described import made_of

_EPSILON = float(np.finfo(np.float32).eps)
# Each intermediate result is taken to be off by so many units in the last place.
_OFF = 4 * _EPSILON
# A decay below this would make what stands for rounding in the next state infinite.
_SMALLEST_DECAY = 1e-30
_NAME = "w"

Arrays = Mapping[str, Array]


class Oracle:
    """The update of parameters with one rule, in float64.

    Values have two axes, rows and their elements; gradients are centralized row by row.
    """

    def __init__(self, update: RunnableUpdate, optimizer: OptimizerFacts, rule: Updated) -> None:
        """Prepare it.

        Args:
            update: What it is compared with.
            optimizer: The hyperparameters.
            rule: A parameter with the rule.

        Raises:
            TypeError: A hyperparameter is missing.
            ValueError: A hyperparameter is one that RMSProp does not take.
        """
        self._optimizer = _optimizer_of(optimizer, rule, update.step, update.fed)
        self._values = (PARAMETER, *rule.states)
        self._dtypes = {PARAMETER: np.dtype(rule.dtype)}
        self._twice_rounded = update.twice_rounded

    def expected(
        self, before: Arrays, gradient: Array, number: int, off: float = 0.0
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """The values after a step, and how far an element may be off by rounding.

        Every intermediate result is off by some units in its last place, and what follows from
        that adds up: much, for example, where a mean square and the square of a mean gradient
        almost cancel. It is found by trying: the gradient as it reaches the averages, the averages
        and the moment are changed by as much, up and down.

        Args:
            before: The values before it.
            gradient: The gradient, multiplied and limited as it is before the update.
            number: The number of the step.
            off: By how many units in the last place that may have been off.

        Raises:
            ValueError: A schedule has no value at this step.
        """
        wanted = self._stepped(self._optimizer, before, gradient, number)
        state = {kind: array.astype(np.float64) for kind, array in before.items()}
        plain, g, terms = self._reduced(state, gradient, number, 1.0 + off * _EPSILON / _OFF)
        sums = self._sums(state, g)
        tolerated = self._own_rounding(state, wanted, sums)
        changes = {"gradient": terms, "moment": np.abs(state.get("moment", g))}
        if plain.decay > _SMALLEST_DECAY:
            changes |= {kind: value / plain.decay for kind, value in sums.items()}
        operands = {"gradient": g} | {kind: state[kind] for kind in self._values if kind}
        start = self._stepped(plain, state, g, number)
        radicand = self._radicand(start)
        uncertain = np.zeros_like(g)
        for kind, operand in operands.items():
            if kind not in changes:
                continue
            moved = []
            for sign in (-_OFF, _OFF):
                changed = {**operands, kind: operand + sign * changes[kind]}
                given = changed.pop("gradient")
                moved.append(self._stepped(plain, state | changed, given, number))
            for value in self._values:
                tolerated[value] += np.maximum(*(_distance(m[value], start[value]) for m in moved))
            uncertain += np.maximum(*(_distance(self._radicand(m), radicand) for m in moved))
        # Where next to nothing is left of what is under the root, the step may have any size.
        any_size = uncertain > np.abs(radicand) / 2
        for kind in tolerated.keys() & {PARAMETER, "moment"}:
            tolerated[kind][any_size] = np.inf
        return wanted, tolerated

    def _reduced(
        self, state: Arrays, gradient: Array, number: int, times: float
    ) -> tuple[RMSProp, Array, Array]:
        """The optimizer without what comes before the averages, and the gradient after that.

        Also the sum of the terms that the gradient is made of, which says how it is rounded: the
        first of them so many times as much as the others.
        """
        (rule,) = self._optimizer.rules
        g = gradient.astype(np.float64)
        terms = np.abs(g) * times
        weight_decay = rule.weight_decay.value(number)
        if not self._optimizer.decoupled_weight_decay:
            decay = state[PARAMETER] * weight_decay * self._optimizer.carried_loss_scale
            g, terms, weight_decay = g + decay, terms + np.abs(decay), 0.0
        if rule.grad_centralization:
            g = g - g.mean(axis=1, keepdims=True)
            terms = terms + terms.mean(axis=1, keepdims=True)
        group = {"params": [Parameter(_NAME, (1,))], "lr": rule.learning_rate}
        plain = _like(self._optimizer, [group | {"weight_decay": Fixed(weight_decay)}])
        return plain, g, terms

    def _sums(self, state: Arrays, gradient: Array) -> dict[str, Array]:
        """What the averages are made of, added up without signs."""
        decay, g = self._optimizer.decay, np.abs(gradient / self._optimizer.carried_loss_scale)
        terms = {"mean_square": g**2, "mean_grad": g}
        return {
            kind: decay * np.abs(state[kind]) + abs(1 - decay) * term
            for kind, term in terms.items()
            if kind in state
        }

    def _radicand(self, state: Arrays) -> Array:
        """What stands under the root."""
        epsilon = self._optimizer.epsilon if self._optimizer.epsilon_inside_root else 0.0
        mean = state.get("mean_grad", np.zeros(1)) if self._optimizer.centered else 0.0
        return np.asarray(state["mean_square"] - np.square(mean) + epsilon)

    def _own_rounding(self, state: Arrays, wanted: Arrays, sums: Arrays) -> dict[str, Array]:
        """How far each result may be off by the operations that make it, of exact operands."""
        found = {}
        for kind in self._values:
            old, new = state[kind], wanted[kind]
            kept = self._optimizer.momentum * old if kind == "moment" else old
            # What it moves by is rounded more often than what it begins with.
            rounding = sums[kind] * _OFF if kind in sums else _moved(kept, new)
            if self._twice_rounded:
                rounding = rounding + _EPSILON * (np.abs(old) + np.abs(new))
            own = np.finfo(self._dtypes.get(kind, np.dtype("float32")))
            last = 0.501 * float(own.eps) * np.abs(new) + float(own.smallest_subnormal)
            found[kind] = rounding + last
        return found

    def _stepped(
        self, optimizer: RMSProp, before: Arrays, gradient: Array, number: int
    ) -> dict[str, Array]:
        oracle = ReferenceRMSProp(optimizer, {_NAME: before[PARAMETER]})
        for kind, array in before.items():
            oracle.state[_key(kind)] = array.astype(np.float64)
        oracle.state["global_step"] = number
        with np.errstate(all="ignore"):
            oracle.step({_NAME: gradient})
        return {kind: np.asarray(oracle.state[_key(kind)]) for kind in self._values}


def _key(kind: str) -> str:
    return f"{kind}.{_NAME}" if kind else _NAME


def _moved(kept: Array, new: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(_EPSILON * np.abs(kept) + _OFF * np.abs(new - kept))


def _distance(moved: Array, start: Array) -> Array:
    """How far values moved; infinitely far where they are no numbers any more."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(moved - start)
    same = (moved == start) | (np.isnan(moved) & np.isnan(start))
    return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))


def _optimizer_of(
    facts: OptimizerFacts, rule: Updated, step: Value | None, fed: Mapping[str, float]
) -> RMSProp:
    """The optimizer that was recognised, for one parameter."""
    names = set(inspect.signature(RMSProp).parameters)
    chosen = {k: v for k, v in vars(facts).items() if k in names and v is not None}
    if facts.decay is not None:
        # 1 - decay is exact in float32, but of the decay that float32 has.
        chosen["decay"] = float(np.float32(facts.decay))
    # Those are done before.
    chosen |= {"skip_on_overflow": False, "clip_norm": None, "clip_norm_per": "all"}
    chosen |= {"clip_value": None, "loss_scale": facts.carried_loss_scale}
    scale = 1.0 if facts.decoupled_weight_decay else facts.carried_loss_scale
    op_type = "Conv" if rule.grad_centralization else None
    shape = (1, 1) if rule.grad_centralization else (1,)
    group = {
        "params": [Parameter(_NAME, shape, op_type=op_type)],
        "lr": _schedule(rule.learning_rate, Computed(rule.rate, step, 1.0), fed),
        "weight_decay": _schedule(rule.weight_decay, Computed(rule.factor, step, scale), fed),
        "grad_centralization": rule.grad_centralization,
    }
    return RMSProp([group], **chosen)


def _like(optimizer: RMSProp, groups: list[dict[str, Any]]) -> RMSProp:
    """An optimizer with the same hyperparameters and other groups."""
    names = set(inspect.signature(RMSProp).parameters) & vars(optimizer).keys() - {"params"}
    return RMSProp(groups, **{name: getattr(optimizer, name) for name in names})


def _schedule(
    described: Schedule, computed: "Computed", fed: Mapping[str, float]
) -> float | LearningRateSchedule:
    """A number, a schedule with the arguments that were found, or what the nodes compute."""
    if described is None:
        raise TypeError("a learning rate is not known")
    if not isinstance(described, Mapping):
        return described
    made = made_of(described, fed)
    return computed if made is None else made


@dataclass(frozen=True, eq=False)
class Computed(LearningRateSchedule):
    """What nodes compute of the step, in NumPy."""

    nodes: Value | None
    step: Value | None
    scale: float

    def emit(self, op: GraphBuilder, step: ir.Value) -> ir.Value:
        """Not needed: it is for the oracle."""
        raise NotImplementedError

    def value(self, step: int) -> float:
        """The value at a step.

        Raises:
            ValueError: The nodes are not arithmetic on numbers.
        """
        if self.nodes is None or self.step is None:
            raise ValueError("a learning rate depends on something else than the step")
        result = scalars.evaluated(self.nodes, self.step, np.array([step], np.int64))
        if result is None:
            raise ValueError("a learning rate is not computed by arithmetic on the step alone")
        return float(result.reshape(-1)[0]) / self.scale
