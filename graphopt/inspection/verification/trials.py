"""Runs an update from random states, and compares each step with the oracle."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt._words import shown
from graphopt.inspection.facts import OptimizerFacts, Schedule
from graphopt.inspection.reading import rates
from graphopt.inspection.reading.dataflow import Value
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.reading.trained import Trained
from graphopt.inspection.verification.batches import PARAMETER, Array, Batch, Updated, batches
from graphopt.inspection.verification.oracle import Oracle
from graphopt.inspection.verification.runnable import NotRunError, RunnableUpdate, State
from graphopt.states import MEAN_GRAD, MEAN_SQUARE, NAMES

# Elements whose mean gradient is too large for their mean square, so that the guard keeps them.
_GUARDED_SHARE = 0.1
_GUARDED_MEAN = 4.0
_SMALLEST_MEAN_SQUARE = 1e-12
_LARGEST_PARAMETER = 1e4
_LARGEST_DEVIATION = 1e300  # JSON has no infinity
_LARGEST_HALF = 60_000.0


@dataclass
class Compared:
    """What comparing has found so far."""

    steps: int = 0
    deviation: float = 0.0
    differences: list[str] = field(default_factory=list)


def compared(
    update: RunnableUpdate, optimizer: OptimizerFacts, nodes: Recovered, *, steps: int, seed: int
) -> Compared:
    """Compare an update with the oracle in some steps, until one differs.

    Args:
        update: The update.
        optimizer: Its hyperparameters.
        nodes: What was recognised in the graph.
        steps: How many steps.
        seed: Of the random numbers.

    Raises:
        NotRunError: It cannot be run, or fails.
    """
    trials = _Trials(update, optimizer, np.random.default_rng(seed))
    return trials.run(steps, _horizon(nodes, steps))


class _Trials:
    """The update of a graph, beside the oracle."""

    def __init__(
        self, update: RunnableUpdate, optimizer: OptimizerFacts, random: np.random.Generator
    ) -> None:
        self._update = update
        self._optimizer = optimizer
        self._random = random
        self._batches = batches(update.parameters)
        try:
            self._oracles = [Oracle(update, optimizer, batch.rule) for batch in self._batches]
        except (KeyError, TypeError, ValueError) as error:
            raise NotRunError(f"RMSProp does not take what was recognised: {error}") from None

    def run(self, steps: int, horizon: int) -> Compared:
        """Compare so many steps, each from a random state, until one differs."""
        found = Compared()
        for number in _numbers(self._random, steps, horizon):
            self._compare(number, found)
            found.steps += 1
            if found.differences:
                break
        return found

    def _compare(self, number: int, found: Compared) -> None:
        before = [self._state(batch, number) for batch in self._batches]
        gradients = [
            self._gradient(batch, state) for batch, state in zip(self._batches, before, strict=True)
        ]
        groups = self._update.groups
        mask = self._random.random(groups) < 0.7 if groups else None
        fed = [{PARAMETER: gradient} for gradient in gradients]
        spread = _spread(self._batches, before), _spread(self._batches, fed)[PARAMETER]
        after = self._update.run(*spread, mask, number)
        for batch, oracle, state, gradient in zip(
            self._batches, self._oracles, before, gradients, strict=True
        ):
            if _is_kept(batch.rule, mask):
                exactly = {kind: np.zeros(batch.shape) for kind in state}
                _compare_batch(batch, after, state, exactly, number, found)
            else:
                expected = _expected(oracle, state, gradient, number)
                _compare_batch(batch, after, *expected, number, found)

    def _state(self, batch: Batch, number: int) -> dict[str, Array]:
        """Parameters and states of all magnitudes from epsilon to 1."""
        random, shape, rule = self._random, batch.shape, batch.rule
        epsilon = self._optimizer.epsilon or 0.0
        low = min(math.log10(max(epsilon, _SMALLEST_MEAN_SQUARE)), -1.0)
        largest = _LARGEST_PARAMETER
        if isinstance(rule.weight_decay, int | float):
            largest = min(1 / max(rule.weight_decay, 1e-30), largest) if rule.weight_decay else 1.0
        magnitude = 10 ** random.uniform(-6.0, max(math.log10(largest), 0.0), shape)
        s = 10 ** random.uniform(low, 0.0, shape)
        values = {
            PARAMETER: random.standard_normal(shape) * magnitude,
            MEAN_SQUARE.name: s,
            MEAN_GRAD.name: np.sqrt(s) * random.uniform(-0.6, 0.6, shape),
        }
        for kind in NAMES:
            if kind not in values:
                values[kind] = random.standard_normal(shape) * 0.01
        decay = self._optimizer.decay or 0.0
        if MEAN_GRAD.name in batch.values and decay > 1e-3:
            guarded = random.random(shape) < _GUARDED_SHARE
            mean = _GUARDED_MEAN * math.sqrt(1 + epsilon) / decay
            values[MEAN_GRAD.name] = np.where(guarded, mean, values[MEAN_GRAD.name])
            values[MEAN_SQUARE.name] = np.where(guarded, 1.0, s)
        for kind, start in self._update.starts(number).items():
            values[kind] = np.full(shape, start)
        dtypes = {PARAMETER: rule.dtype}
        return {k: _rounded(values[k], dtypes.get(k, "float32")) for k in batch.values}

    def _gradient(self, batch: Batch, state: Mapping[str, Array]) -> Array:
        """Of the size of the root of the mean square, times the loss scale."""
        root = np.sqrt(np.maximum(state[MEAN_SQUARE.name], 0))
        scale = self._optimizer.constant_loss_scale
        gradient = root * self._random.standard_normal(batch.shape) * scale
        return _rounded(gradient, batch.rule.gradient_dtype)


def _rounded(array: Array, dtype: str) -> Array:
    if dtype == "float16":
        array = np.clip(array, -_LARGEST_HALF, _LARGEST_HALF)
    return array.astype(dtype)


def _spread(parts: Sequence[Batch], states: Sequence[Mapping[str, Array]]) -> State:
    found: dict[str, dict[str, Array]] = {}
    for batch, state in zip(parts, states, strict=True):
        for kind, array in state.items():
            found.setdefault(kind, {}).update((p.name, part) for p, part in batch.spread(array))
    return found


def _is_kept(rule: Updated, mask: Array | None) -> bool:
    """Whether a mask says that parameters stay as they are."""
    if rule.enabled_by is None or mask is None:
        return False
    if not -len(mask) <= rule.enabled_by < len(mask):
        raise NotRunError(f"the mask has {len(mask)} groups, and no group {rule.enabled_by}")
    return not mask[rule.enabled_by]


def _expected(
    oracle: Oracle, state: Mapping[str, Array], gradient: Array, number: int
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    try:
        return oracle.expected(state, gradient, number)
    except (ArithmeticError, IndexError, ValueError) as error:
        raise NotRunError(f"step {number}: {error}") from None


def _compare_batch(
    batch: Batch,
    after: State,
    wanted: Mapping[str, Array],
    tolerated: Mapping[str, Array],
    number: int,
    found: Compared,
) -> None:
    differ: set[tuple[str, str]] = set()
    for parameter, part, rows in batch.pieces():
        for kind in batch.values:
            got = after[kind][parameter.name].reshape(-1)[part]
            want = wanted[kind][rows].reshape(-1)
            parts = _parts(got, want, tolerated[kind][rows].reshape(-1))
            worst = int(np.argmax(parts))
            found.deviation = max(found.deviation, float(parts[worst]))
            if parts[worst] > 1 and (kind, parameter.name) not in differ:
                differ.add((kind, parameter.name))
                found.differences.append(
                    f"step {number}: {_element(parameter, kind, part.start + worst)} is "
                    f"{got[worst]:.6g}, expected {want[worst]:.6g}"
                )


def _parts(got: Array, want: Array, tolerated: Array) -> Array:
    """Differences as a part of what is tolerated; NaN and infinity must be in both."""
    with np.errstate(all="ignore"):
        rounded = want.astype(got.dtype)  # a large number is infinite in float16
        parts = np.abs(got.astype(np.float64) - want) / tolerated
    same = (np.isnan(got) & np.isnan(want)) | (got == rounded) | np.isinf(tolerated)
    return np.where(same, 0.0, np.where(np.isnan(parts), np.inf, parts))


def _element(parameter: Updated, kind: str, place: int) -> str:
    name = shown(f"{kind}.{parameter.name}" if kind else parameter.name)
    index = ", ".join(str(int(i)) for i in np.unravel_index(place, parameter.shape or (1,)))
    return f"{name}[{index}]" if parameter.shape else name


def _numbers(random: np.random.Generator, steps: int, horizon: int) -> list[int]:
    """The steps to compare: the first, and others before the horizon."""
    if horizon <= steps:
        return [number % horizon for number in range(steps)]
    return [0, *sorted(random.integers(1, horizon, steps - 1).tolist())]


def _horizon(nodes: Recovered, steps: int) -> int:
    """How many steps there are that are worth a try; lists have no more."""
    ends, lengths = [steps], []
    for schedule, value in _scheduled(nodes.trained):
        kind = schedule["schedule"]
        if kind == "list":
            lengths.append(int(schedule["length"]))
        if kind in rates.RECOGNISED:
            ends += [number + 1 for number, _ in rates.curve(value, nodes.step, None)[-1:]]
    return min([max(ends), *lengths])


def _scheduled(
    trained: Sequence[Trained],
) -> Iterable[tuple[Mapping[str, Any], Value]]:
    """The learning rates and weight decays that are no numbers, each once."""
    found = {}
    for parameter in trained:
        facts = parameter.facts
        pairs: tuple[tuple[Schedule, Value | None], ...] = (
            (facts.learning_rate, parameter.rate),
            (facts.weight_decay, parameter.factor),
        )
        for schedule, value in pairs:
            if isinstance(schedule, Mapping) and value is not None:
                found[id(value)] = (schedule, value)
    return found.values()
