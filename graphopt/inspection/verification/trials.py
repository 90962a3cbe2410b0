"""Runs an update from random states, and compares each step with the oracle."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from graphopt._words import shown
from graphopt.inspection.facts import OptimizerFacts
from graphopt.inspection.reading.recovered import Recovered
from graphopt.inspection.verification.batches import PARAMETER, Array, Batch, Updated, batches
from graphopt.inspection.verification.comparing import Compared, compare_batch, compare_parameter
from graphopt.inspection.verification.gradient_factors import GradientFactors
from graphopt.inspection.verification.oracle import Oracle
from graphopt.inspection.verification.runnable import Given, NotRunError, RunnableUpdate, State
from graphopt.inspection.verification.step_numbers import horizon_of, step_numbers
from graphopt.inspection.verification.summed import Added, placed, split
from graphopt.loss_scale import DynamicLossScale
from graphopt.states import (
    ACCUMULATED,
    ACCUMULATION_COUNT,
    AVERAGE,
    LOSS_SCALE_STEPS,
    MEAN_GRAD,
    MEAN_SQUARE,
    NAMES,
    RANDOM_SEED,
    RANDOM_STEP,
    SKIPPED_STEPS,
)

# Elements whose mean gradient is too large for their mean square, so that the guard keeps them.
_GUARDED_SHARE = 0.1
_GUARDED_MEAN = 4.0
_SMALLEST_MEAN_SQUARE = 1e-12
_LARGEST_PARAMETER = 1e4
_LARGEST_DEVIATION = 1e300  # JSON has no infinity
_LARGEST_HALF = 60_000.0
_RATIOS = (4.0, 0.5)  # of gradients and what limits them
_PERIOD = 4  # of steps that add gradients up, the second is no update
_LARGEST_LIMIT = 1e6
_MOST_OVERFLOWS = 12
_OVERFLOWS = (np.inf, np.nan, -np.inf)
_UNIT = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float32).tiny)


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
    return trials.run(steps, horizon_of(nodes, steps))


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
            self._factors = GradientFactors(update.parameters, optimizer)
        except (KeyError, TypeError, ValueError) as error:
            raise NotRunError(f"RMSProp does not take what was recognised: {error}") from None

    def run(self, steps: int, horizon: int) -> Compared:
        """Compare so many steps, each from a random state, until one differs."""
        found = Compared()
        numbers = step_numbers(self._random, steps, horizon)
        for trial, number in enumerate(numbers):
            given = self._given(number, is_last=trial % _PERIOD != 1)
            self._compare(given, _RATIOS[trial % len(_RATIOS)], found)
            found.steps += 1
            if found.differences:
                return found
        if self._factors.skips:
            self._overflow(numbers[-1], found)
        if self._factors.rule is not None and not found.differences:
            self._follow(self._factors.rule, found)
        if self._optimizer.dynamic_loss_scale is not None and self._factors.rule is None:
            found.unchecked.append("the loss scale: how it changes is not known")
        return found

    def _compare(self, given: Given, ratio: float, found: Compared) -> None:
        """A step whose gradients are so many times as large as the limit of their norms."""
        number = given.number
        before = [self._state(batch, number) for batch in self._batches]
        gradients = self._gradients(before, given, ratio, found)
        fed_state, fed, added = self._fed(before, gradients, given)
        after = self._update.run(fed_state, fed, given)
        self._compare_averages(fed_state, after, given, found)
        if added is None:
            factors, norm = self._factors.of(fed, given)
        else:
            gradients = added.totals
            self._compare_sums(added, after, given, found)
            factors, norm = self._factors.of(self._each(gradients), given, added.share)
        self._compare_reported(given, norm, found)
        for batch, oracle, state, gradient in zip(
            self._batches, self._oracles, before, gradients, strict=True
        ):
            if _is_kept(batch.rule, given):
                exactly = {kind: np.zeros(batch.shape) for kind in state}
                compare_batch(batch, after, state, exactly, number, found)
            else:
                taken = gradient.astype(np.float64) * factors[batch.rule.name]
                if (limit := self._factors.clip_value) is not None:
                    taken = np.clip(taken, -limit, limit)
                expected = _expected(oracle, state, taken, number, self._factors.off)
                compare_batch(batch, after, *expected, number, found)

    def _fed(
        self, before: Sequence[Mapping[str, Array]], gradients: Sequence[Array], given: Given
    ) -> tuple[State, Mapping[str, Array], Added | None]:
        """What each parameter begins with and its gradient, so that these are applied."""
        state = self._spread(before)
        rule = self._factors.accumulation
        if rule is None or not self._update.sums:
            return state, self._each(gradients), None
        added = split(rule, given, self._batches, gradients, self._random)
        state = {**state, ACCUMULATED.name: self._each(added.before)}
        return state, self._each(added.gradients), added

    def _each(self, arrays: Sequence[Array]) -> Mapping[str, Array]:
        """What each parameter has of the arrays of batches."""
        return _spread(self._batches, [{PARAMETER: array} for array in arrays])[PARAMETER]

    def _compare_sums(self, added: Added, after: State, given: Given, found: Compared) -> None:
        """The sums of gradients, of this step and those before."""
        wanted, offs = self._each(added.totals), self._each(added.off)
        for parameter in self._update.parameters:
            got = after[ACCUMULATED.name][parameter.name].astype(np.float64)
            want = wanted[parameter.name]
            off = offs[parameter.name]
            compare_parameter(parameter, ACCUMULATED.name, (got, want, off), given.number, found)

    def _spread(self, before: Sequence[Mapping[str, Array]]) -> State:
        """What each parameter begins with; an average is some other number of its size."""
        state = _spread(self._batches, before)
        if not self._update.averages:
            return state
        averages = {
            name: np.asarray(array, np.float32) * np.float32(self._random.uniform(-1.5, 1.5))
            for name, array in state[PARAMETER].items()
        }
        return {**state, AVERAGE.name: averages}

    def _compare_averages(self, state: State, after: State, given: Given, found: Compared) -> None:
        """The averages, of the parameters that the step has made."""
        rule = self._optimizer.average
        if rule is None or not self._update.averages:
            return
        decay = float(np.float32(rule.decay_at(given.number)))
        for parameter in self._update.parameters:
            name = parameter.name
            old, got = (s[AVERAGE.name][name].astype(np.float64) for s in (state, after))
            kept = decay * old
            added = (1 - decay) * after[PARAMETER][name].astype(np.float64)
            want, off = kept + added, 2 * _UNIT * (np.abs(kept) + np.abs(added)) + _TINY
            own = np.finfo(parameter.dtype)  # of the parameter, which is rounded afterwards
            off += float(own.eps) * np.abs(added) + (1 - decay) * float(own.smallest_subnormal)
            if _is_kept(parameter, given):
                want, off = old, np.zeros_like(old)
            compare_parameter(parameter, AVERAGE.name, (got, want, off), given.number, found)

    def _given(self, number: int, *, overflows: bool = False, is_last: bool = True) -> Given:
        random, rule = self._random, self._factors.rule
        groups = self._update.groups
        most = 1000 if rule is None else rule.growth_interval
        counters = {
            LOSS_SCALE_STEPS.name: float(random.integers(most)),
            SKIPPED_STEPS.name: float(random.integers(1000)),
            RANDOM_SEED.name: float(number % 1000 + 1),
            RANDOM_STEP.name: float(number % 997),
        }
        given = Given(
            number,
            random.random(groups) < 0.7 if groups else None,
            self._factors.scale(random),
            counters,
            overflows,
        )
        summed = self._factors.accumulation
        return given if summed is None else placed(summed, given, random, is_last=is_last)

    def _gradients(
        self, before: Sequence[Mapping[str, Array]], given: Given, ratio: float, found: Compared
    ) -> list[Array]:
        """The gradients of each batch."""
        scale = given.loss_scale
        made = [
            self._gradient(batch, state, scale)
            for batch, state in zip(self._batches, before, strict=True)
        ]
        limit = self._factors.clip_norm or self._factors.clip_value
        if limit is not None:
            if limit > _LARGEST_LIMIT:
                told = "clipping: gradients of the size that is clipped were not tried"
                found.unchecked += [] if told in found.unchecked else [told]
            size = self._size(made, scale)
            if size > 0:
                times = min(limit, _LARGEST_LIMIT) * ratio / size
                made = [
                    _rounded(gradient.astype(np.float64) * times, batch.rule.gradient_dtype)
                    for batch, gradient in zip(self._batches, made, strict=True)
                ]
        return made

    def _size(self, gradients: Sequence[Array], scale: float) -> float:
        """What is limited, as large as it is now: a norm, of one of the sets, or an element."""
        squares = [np.mean(np.square(g, dtype=np.float64)) for g in gradients]
        counts = [sum(p.size for p in batch.parameters) for batch in self._batches]
        total = sum(square * count for square, count in zip(squares, counts, strict=True))
        sets = {repr(batch.rule.limited_with) for batch in self._batches}
        parts = len(sets) if self._factors.clip_norm is not None else sum(counts)
        return float(np.sqrt(total / parts)) / scale

    def _compare_reported(self, given: Given, norm: float, found: Compared) -> None:
        """What a step says beside its states."""
        reported = dict(self._update.reported)
        if (said := reported.pop("gradient_norm", None)) is not None and given.updates:
            off = abs(float(said) - norm) / (self._factors.off_norm * _UNIT * norm + _TINY)
            found.deviation = max(found.deviation, min(off, _LARGEST_DEVIATION))
            if not off <= 1:
                found.differences.append(
                    f"step {given.number}: gradient_norm is {float(said):.6g}, expected {norm:.6g}"
                )
        if (flag := reported.pop("updated", None)) is not None and bool(flag) != given.updates:
            found.differences.append(
                f"step {given.number}: updated is {bool(flag)}, expected {given.updates}"
            )
        wanted = self._factors.counted(given)
        for name, value in reported.items():
            if name in wanted and float(value) != wanted[name]:
                found.differences.append(
                    f"step {given.number}{given.what}: {name} is {float(value):.9g}, "
                    f"expected {wanted[name]:.9g}"
                )

    def _overflow(self, number: int, found: Compared) -> None:
        """Steps in which one element of one gradient is infinite or NaN change nothing.

        It is tried for some gradients; that the nodes look at all of them is seen in them.
        """
        before = [self._state(batch, number) for batch in self._batches]
        parameters = self._update.parameters
        chosen = self._random.permutation(len(parameters))[:_MOST_OVERFLOWS]
        for trial, index in enumerate(chosen):
            parameter = parameters[index]
            given = self._given(number, overflows=True, is_last=trial % 2 == 0)
            gradients = self._gradients(before, given, 1.0, found)
            state, fed, _ = self._fed(before, gradients, given)
            gradient = np.array(fed[parameter.name])
            place = int(self._random.integers(gradient.size))
            gradient.reshape(-1)[place] = _OVERFLOWS[trial % len(_OVERFLOWS)]
            after = self._update.run(state, {**fed, parameter.name: gradient}, given)
            self._compare_reported(given, math.nan, found)
            for kind, arrays in state.items():
                for name, old in arrays.items():
                    if after[kind][name].tobytes() != old.tobytes():
                        found.differences.append(
                            f"step {number}: {shown(f'{kind}.{name}' if kind else name)} changes, "
                            f"though the gradient of '{shown(parameter.name)}' overflows"
                        )
            if found.differences:
                return

    def _follow(self, rule: DynamicLossScale, found: Compared) -> None:
        """The loss scale after steps at its edges, with gradients of zero."""
        largest = float(np.finfo(np.float32).max)
        scales = {rule.initial, rule.floor, rule.ceiling or largest, 1.5 * rule.initial}
        steps = {0, rule.growth_interval - 2, rule.growth_interval - 1}
        states = [self._state(batch, 0) for batch in self._batches]
        before = self._spread(states)
        zeros = {p.name: np.zeros(p.shape, p.gradient_dtype) for p in self._update.parameters}
        if self._update.sums:
            before = {**before, ACCUMULATED.name: zeros}
        first = self._update.parameters[0]
        for scale, count, overflows in itertools.product(
            sorted(scales), sorted(steps), (False, True)
        ):
            if count < 0 or not 0 < scale <= min(rule.ceiling or largest, largest):
                continue
            gradients = dict(zeros)
            if overflows:
                gradients[first.name] = np.full(first.shape, np.nan, first.gradient_dtype)
            counters = {LOSS_SCALE_STEPS.name: float(count), SKIPPED_STEPS.name: 0.0}
            counters[ACCUMULATION_COUNT.name] = 0.0
            given = Given(0, None, float(np.float32(scale)), counters, overflows)
            if (summed := self._factors.accumulation) is not None:
                given = placed(summed, given, self._random, is_last=True)
            if self._update.groups:
                given = replace(given, mask=np.ones(self._update.groups, np.bool_))
            self._update.run(before, gradients, given)
            self._compare_reported(given, 0.0, found)
            if found.differences:
                return

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

    def _gradient(self, batch: Batch, state: Mapping[str, Array], scale: float) -> Array:
        """Of the size of the root of the mean square, times the loss scale."""
        root = np.sqrt(np.maximum(state[MEAN_SQUARE.name], 0))
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


def _is_kept(rule: Updated, given: Given) -> bool:
    """Whether parameters stay as they are: by a mask, or because more gradients are to come."""
    mask = given.mask
    if rule.enabled_by is None or mask is None:
        return not given.is_last
    if not -len(mask) <= rule.enabled_by < len(mask):
        raise NotRunError(f"the mask has {len(mask)} groups, and no group {rule.enabled_by}")
    return not given.is_last or not mask[rule.enabled_by]


def _expected(
    oracle: Oracle, state: Mapping[str, Array], gradient: Array, number: int, off: float
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    try:
        return oracle.expected(state, gradient, number, off)
    except (ArithmeticError, IndexError, ValueError) as error:
        raise NotRunError(f"step {number}: {error}") from None
